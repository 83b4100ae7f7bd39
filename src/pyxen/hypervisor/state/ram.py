"""Pages on their way into a stream and out of it: an address (u64), then whole pages. Those of zeros are left out."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from pyxen.hypervisor.memory import PAGE_SIZE, BadAddress, GuestMemory
from pyxen.hypervisor.state.sections import PAGES, Reader, Writer, damaged

_CHUNK: Final = 256 * 1024
_ZEROS: Final = bytes(_CHUNK)
_ZERO_PAGE: Final = bytes(PAGE_SIZE)
_ADDRESS: Final = struct.Struct("<Q")


def write(writer: Writer, start: int, data: memoryview) -> None:
    """Write what is not zero of ``data``, which lies at guest-physical ``start``."""
    for at in range(0, len(data), _CHUNK):
        # Copied, so that what is looked at is what is written: back ends may be about to finish something.
        chunk = bytes(data[at : at + _CHUNK])
        if chunk != (_ZEROS if len(chunk) == _CHUNK else bytes(len(chunk))):
            for offset, run in _runs(chunk):
                writer.section(PAGES, _ADDRESS.pack(start + at + offset), run)


def _runs(chunk: bytes) -> Iterator[tuple[int, bytes]]:
    """Stretches of pages that are not zero, with their offsets."""
    first: int | None = None
    for at in range(0, len(chunk), PAGE_SIZE):
        if chunk[at : at + PAGE_SIZE] != _ZERO_PAGE:
            first = at if first is None else first
        elif first is not None:
            yield first, chunk[first:at]
            first = None
    if first is not None:
        yield first, chunk[first:] if first else chunk


def read(reader: Reader, memory: GuestMemory) -> None:
    """Take a section of pages, straight into ``memory``. Raises InvalidRequest."""
    if reader.remaining <= _ADDRESS.size or (reader.remaining - _ADDRESS.size) % PAGE_SIZE:
        raise damaged("pages that are not whole")
    (address,) = _ADDRESS.unpack(reader.take(_ADDRESS.size))
    try:
        view = memory.view(address, reader.remaining)
    except BadAddress:
        raise damaged(f"pages at {address:#x}, where the domain has no memory") from None
    reader.take_into(view)

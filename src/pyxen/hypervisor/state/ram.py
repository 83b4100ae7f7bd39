"""Pages on their way into a stream and out of it: an address (u64), then whole pages.

The first time those of zeros are left out, as a reader's memory is zeros to begin with. Pages may come again: the last
time counts.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from pyxen.hypervisor.memory import PAGE_SHIFT, PAGE_SIZE, BadAddress, GuestMemory, Region
from pyxen.hypervisor.state.sections import PAGES, Reader, Writer, damaged

_CHUNK: Final = 256 * 1024
_ZEROS: Final = bytes(_CHUNK)
_ZERO_PAGE: Final = bytes(PAGE_SIZE)
_ADDRESS: Final = struct.Struct("<Q")


def write(writer: Writer, region: Region) -> Iterator[int]:
    """Write what is not zero of ``region``, piece by piece; how many bytes have been dealt with."""
    for at in range(0, len(region.data), _CHUNK):
        # Copied, so that what is looked at is what is written: guest or back ends may be changing it.
        chunk = bytes(region.data[at : at + _CHUNK])
        if chunk != (_ZEROS if len(chunk) == _CHUNK else bytes(len(chunk))):
            for offset, run in _runs(chunk):
                put(writer, region.start + at + offset, run)
        yield len(chunk)


def write_again(writer: Writer, region: Region, pages: int) -> Iterator[int]:
    """Write those of the region's pages whose bits are set in ``pages``, zeros or not, in the same way."""
    for first, end in stretches(pages):
        for at in range(first << PAGE_SHIFT, end << PAGE_SHIFT, _CHUNK):
            chunk = bytes(region.data[at : min(at + _CHUNK, end << PAGE_SHIFT)])
            put(writer, region.start + at, chunk)
            yield len(chunk)


def stretches(bits: int) -> Iterator[tuple[int, int]]:
    """The first bit of each row of ones, and the one after it."""
    words = memoryview(bits.to_bytes(-(-bits.bit_length() // 64) * 8, "little")).cast("Q")
    first = end = 0
    for index, word in enumerate(words):
        while word:
            low = (word & -word).bit_length() - 1
            above = ~(word >> low)
            count = (above & -above).bit_length() - 1
            word &= ~((1 << count) - 1 << low)
            start = index * 64 + low
            if start != end:
                if end > first:
                    yield first, end
                first = start
            end = start + count
    if end > first:
        yield first, end


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
    take_pages(reader, take_address(reader), memory)


def take_address(reader: Reader) -> int:
    """Where the pages of this section belong; they are what is left of it. Raises InvalidRequest."""
    if reader.remaining <= _ADDRESS.size or (reader.remaining - _ADDRESS.size) % PAGE_SIZE:
        raise damaged("pages that are not whole")
    address: int = _ADDRESS.unpack(reader.take(_ADDRESS.size))[0]
    return address


def take_pages(reader: Reader, address: int, memory: GuestMemory) -> None:
    """Take them into ``memory``. Raises InvalidRequest."""
    try:
        view = memory.view(address, reader.remaining)
    except BadAddress:
        raise damaged(f"pages at {address:#x}, where the domain has no memory") from None
    reader.take_into(view)


def put(writer: Writer, address: int, pages: bytes) -> None:
    """Write a section of pages."""
    writer.section(PAGES, _ADDRESS.pack(address), pages)

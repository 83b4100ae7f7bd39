"""The form of a saved state: a front and sections, each with its length and checksum, written from start to end.

    front      "pyxen state" and zeros (16 bytes), version (u32), zeros (12)
    section    kind (4 letters), CRC-32 of the kind and the contents (u32), length of the contents (u64), the contents
    …
    "DONE"     how many sections came before it (u64)

Numbers are little-endian. ``VERSION`` changes when an older reader would misunderstand a stream.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Sequence
from typing import Final

from pyxen.errors import InvalidRequest
from pyxen.hypervisor.state.stop import Stop

VERSION: Final = 1
HEAD, FRAMES, PAGES, XEN, CPU, DONE = b"HEAD", b"FRAM", b"PAGE", b"XEN ", b"VCPU", b"DONE"

_MAGIC: Final = b"pyxen state".ljust(16, b"\0")
_FRONT: Final = struct.Struct("<16sI12x")
_SECTION: Final = struct.Struct("<4sIQ")
_COUNT: Final = struct.Struct("<Q")
_LONGEST: Final = 64 << 20
"""Bytes of a section that is read as a whole: nothing that a domain can have comes near it."""


class Writer:
    """Writes to a descriptor, which must not block, and waits where it takes no more: up to ``stop``.

    Raises OSError, and Conflict when it was stopped.
    """

    def __init__(self, fd: int, stop: Stop) -> None:
        self._fd = fd
        self._stop = stop
        self._count = 0
        self.written = 0
        """Bytes so far."""
        self._put([_FRONT.pack(_MAGIC, VERSION)])

    def section(self, kind: bytes, *contents: bytes) -> None:
        """One section, made of these pieces."""
        checksum = zlib.crc32(kind)
        for piece in contents:
            checksum = zlib.crc32(piece, checksum)
        self._put([_SECTION.pack(kind, checksum, sum(map(len, contents))), *contents])
        self._count += 1

    def done(self) -> None:
        """The end, without which a reader takes nothing."""
        self.section(DONE, _COUNT.pack(self._count))

    def _put(self, pieces: Sequence[bytes]) -> None:
        views = [memoryview(piece) for piece in pieces]
        while views:
            try:
                count = os.writev(self._fd, views)
            except BlockingIOError:
                self._stop.until_writable(self._fd)
                continue
            self.written += count
            while views and count >= len(views[0]):
                count -= len(views.pop(0))
            if views:
                views[0] = views[0][count:]


class Reader:
    """Reads from a descriptor that blocks. Raises InvalidRequest for what no Writer has written, and OSError."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._count = 0
        self._kind = b""
        self._checksum = self._expected = 0
        self.remaining = 0
        """Bytes of this section that have not been read."""
        magic, version = _FRONT.unpack(self._bytes(_FRONT.size))
        if magic != _MAGIC:
            raise damaged("it does not begin as one")
        if version != VERSION:
            raise InvalidRequest(
                f"the state is of format {version}, and this pyxen reads format {VERSION}",
                hint="Restore it with the version of pyxen that saved it, or a newer one.",
            )

    def section(self) -> bytes:
        """The next section's kind; DONE when all is read. The one before must have been read to its end."""
        self._kind, self._expected, self.remaining = _SECTION.unpack(self._bytes(_SECTION.size))
        self._checksum = zlib.crc32(self._kind)
        if self._kind == DONE:
            if self.contents() != _COUNT.pack(self._count):
                raise damaged("sections of it are missing")
        else:
            self._count += 1
        return self._kind

    def contents(self) -> bytes:
        """All of the section, or what is left of it."""
        if self.remaining > _LONGEST:
            raise damaged(f"a section of {self.remaining} bytes")
        return self.take(self.remaining)

    def take(self, length: int) -> bytes:
        """The section's next ``length`` bytes."""
        data = bytearray(length)
        self.take_into(memoryview(data))
        return bytes(data)

    def take_into(self, view: memoryview) -> None:
        """Fill ``view`` with the section's next bytes; with the last ones all of them are checked."""
        if len(view) > self.remaining:
            raise damaged("a section is shorter than what it holds")
        self._fill(view)
        self.remaining -= len(view)
        self._checksum = zlib.crc32(view, self._checksum)
        if not self.remaining and self._checksum != self._expected:
            raise damaged("the checksum of a section is wrong")

    def _bytes(self, length: int) -> bytes:
        data = bytearray(length)
        self._fill(memoryview(data))
        return bytes(data)

    def _fill(self, view: memoryview) -> None:
        while view:
            count = os.readv(self._fd, [view])
            if not count:
                raise damaged("it ends too early")
            view = view[count:]


def damaged(why: str) -> InvalidRequest:
    """The refusal of a stream that can't be what was written."""
    return InvalidRequest(f"the state is damaged: {why}", hint="It can't be restored; is there a copy of it?")

"""A guest's physical memory, as the hypervisor sees it: reads, writes and views, each checked against what is there.

Addresses are guest-physical (``gpa``) and come from the guest, so every access may raise :class:`BadAddress`.

While the memory is being sent somewhere, pages that are written here are noted: KVM notes only what the guest itself
writes. Nothing writes but through ``write``, ``put_…`` and the views given out here, and each of them is of a kind that
says when that may be: at once (``view``), never (``look``), or at any time (``keep``).
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

PAGE_SHIFT: Final = 12
PAGE_SIZE: Final = 1 << PAGE_SHIFT

_U16: Final = struct.Struct("<H")
_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")


class BadAddress(Exception):
    """An access that is not wholly inside one region of the guest's memory (-EFAULT to the guest)."""

    def __init__(self, gpa: int, length: int) -> None:
        super().__init__(f"{length} bytes at {gpa:#x} are not in the guest's memory")
        self.gpa = gpa
        self.length = length


@dataclass(frozen=True, slots=True)
class Region:
    """Memory from ``start`` up to, but without, ``end``; ``data`` is writable and as long.

    ``words`` are the same bytes as aligned 64-bit numbers, as far as they make whole ones; ``constant`` can't be
    written through.
    """

    start: int
    end: int
    data: memoryview
    words: memoryview
    constant: memoryview


class GuestMemory:
    """The memory of one domain, of one or more regions that don't overlap.

    Integers are little-endian and unsigned, whatever their alignment; ``put_`` cuts off what is too large.
    A store of up to 8 aligned bytes is seen whole by the guest; nothing here is a locked operation.
    """

    def __init__(
        self, regions: Iterable[tuple[int, mmap.mmap | bytearray | memoryview]] = (), *, is_copy: bool = False
    ) -> None:
        self.is_copy = is_copy
        """Pages that the host takes back become again what they are a copy of."""
        self.regions: tuple[Region, ...] = ()
        self._kept: set[int] = set()
        self._written: set[int] | None = None
        for start, data in regions:
            self.add(start, data)

    @classmethod
    def anonymous(cls, size: int) -> GuestMemory:
        """``size`` zeroed bytes from address 0."""
        return cls([(0, mmap.mmap(-1, size))])

    def add(self, start: int, data: mmap.mmap | bytearray | memoryview) -> Region:
        """Put ``data`` at ``start``. Raises ValueError if something is there."""
        view = memoryview(data).cast("B")
        region = Region(start, start + len(view), view, view[: len(view) & ~7].cast("Q"), view.toreadonly())
        if any(region.start < other.end and other.start < region.end for other in self.regions):
            raise ValueError(f"there is memory at {start:#x} already")
        # A new tuple: other threads may be looking through the old one.
        self.regions = (*self.regions, region)
        return region

    def remove(self, region: Region) -> None:
        """Take a region away; views of it stay valid, but are no longer the guest's."""
        self.regions = tuple(other for other in self.regions if other is not region)

    def find(self, gpa: int, length: int) -> Region:
        """The region that holds all of ``length`` bytes at ``gpa``. Raises BadAddress."""
        if length >= 0:
            end = gpa + length
            for region in self.regions:
                if region.start <= gpa and end <= region.end:
                    return region
        raise BadAddress(gpa, length)

    def view(self, gpa: int, length: int) -> memoryview:
        """The guest's own bytes, not copied, to be written now: before whoever asks lets go of domain.lock.

        Raises BadAddress.
        """
        region = self.find(gpa, length)
        offset = gpa - region.start
        if self._written is not None:
            self.mark(gpa, length)
        return region.data[offset : offset + length]

    def look(self, gpa: int, length: int) -> memoryview:
        """The same for reading only."""
        region = self.find(gpa, length)
        offset = gpa - region.start
        return region.constant[offset : offset + length]

    def keep(self, gpa: int, length: int) -> memoryview:
        """The same for writing at any time: its pages count as written from now on, whenever somebody asks."""
        view = self.view(gpa, length)
        self._kept.update(_pages(gpa, length))
        return view

    def read(self, gpa: int, length: int) -> bytes:
        """A copy of ``length`` bytes. Raises BadAddress."""
        return bytes(self.look(gpa, length))

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """Store ``data``, all or (BadAddress) nothing of it. From any thread."""
        region = self.find(gpa, len(data))
        offset = gpa - region.start
        region.data[offset : offset + len(data)] = data
        self.mark(gpa, len(data))

    # Which pages have been written

    def note_writes(self, on: bool) -> None:
        """Begin to note which pages are written here, or stop."""
        self._written = set() if on else None

    def mark(self, gpa: int, length: int) -> None:
        """Note that these bytes have just been written, or are no longer what they were. From any thread."""
        if (written := self._written) is not None:
            written.update(_pages(gpa, length))

    def take_written(self) -> set[int]:
        """The frames that were written since the last call, or since ``note_writes``. With domain.lock held."""
        found: set[int] = set()
        written = self._written
        # One by one: another thread's mark lands in this set before or after each, and is never lost.
        while written:
            found.add(written.pop())
        return found

    @property
    def kept(self) -> frozenset[int]:
        """The frames that may be written at any time: see ``keep``."""
        return frozenset(self._kept)

    def u8(self, gpa: int) -> int:
        region = self.find(gpa, 1)
        return region.data[gpa - region.start]

    def u16(self, gpa: int) -> int:
        region = self.find(gpa, 2)
        value: int = _U16.unpack_from(region.data, gpa - region.start)[0]
        return value

    def u32(self, gpa: int) -> int:
        region = self.find(gpa, 4)
        value: int = _U32.unpack_from(region.data, gpa - region.start)[0]
        return value

    def u64(self, gpa: int) -> int:
        region = self.find(gpa, 8)
        value: int = _U64.unpack_from(region.data, gpa - region.start)[0]
        return value

    def put_u8(self, gpa: int, value: int) -> None:
        region = self.find(gpa, 1)
        region.data[gpa - region.start] = value & 0xFF
        self.mark(gpa, 1)

    def put_u16(self, gpa: int, value: int) -> None:
        region = self.find(gpa, 2)
        _U16.pack_into(region.data, gpa - region.start, value & 0xFFFF)
        self.mark(gpa, 2)

    def put_u32(self, gpa: int, value: int) -> None:
        region = self.find(gpa, 4)
        _U32.pack_into(region.data, gpa - region.start, value & 0xFFFFFFFF)
        self.mark(gpa, 4)

    def put_u64(self, gpa: int, value: int) -> None:
        region = self.find(gpa, 8)
        _U64.pack_into(region.data, gpa - region.start, value & 0xFFFFFFFFFFFFFFFF)
        self.mark(gpa, 8)


def _pages(gpa: int, length: int) -> range:
    """The frames of some bytes."""
    return range(gpa >> PAGE_SHIFT, (gpa + length + PAGE_SIZE - 1) >> PAGE_SHIFT)

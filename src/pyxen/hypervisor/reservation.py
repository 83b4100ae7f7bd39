"""Which of the domain's pages the guest has given back (ballooning), and how many it may have."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from pyxen.abi.shared_info import PAGE_SIZE


class Reservation:
    """The pages of the domain's RAM: ``ram`` are [(first gfn, pages)]. Frames outside of RAM are not counted."""

    def __init__(self, ram: Iterable[tuple[int, int]]) -> None:
        self._ranges = tuple(ram)
        self.size = sum(pages for _, pages in self._ranges)
        self.maximum = self.size
        """Pages that the domain may have; to be set, up to ``size`` (xm mem-max)."""
        self.changed: Callable[[], None] = lambda: None
        """Told of each call of the guest's that may change ``current``, in its thread with domain.lock held."""
        self.absent = 0
        self._holes = [bytearray(-(-pages // 8)) for _, pages in self._ranges]

    @property
    def current(self) -> int:
        """Pages that the domain has now."""
        return self.size - self.absent

    @property
    def last_gfn(self) -> int:
        return max((start + pages - 1 for start, pages in self._ranges), default=0)

    def _find(self, gfn: int) -> tuple[bytearray, int] | None:
        for (start, pages), holes in zip(self._ranges, self._holes, strict=True):
            if start <= gfn < start + pages:
                return holes, gfn - start
        return None

    def is_ram(self, gfn: int) -> bool:
        return self._find(gfn) is not None

    def is_present(self, gfn: int) -> bool:
        """Whether ``gfn`` is RAM that the domain has."""
        found = self._find(gfn)
        return found is not None and not found[0][found[1] >> 3] >> (found[1] & 7) & 1

    def remove(self, gfn: int) -> bool:
        """The guest gives the page back; False if it has none there."""
        found = self._find(gfn)
        if found is None or not self.is_present(gfn):
            return False
        holes, index = found
        holes[index >> 3] |= 1 << (index & 7)
        self.absent += 1
        return True

    def holes(self) -> list[bytes]:
        """A copy of what has been given back: for each range of RAM a bit for each page."""
        return [bytes(holes) for holes in self._holes]

    def set_holes(self, holes: Sequence[bytes]) -> bool:
        """Take such a copy; False if it is that of another domain."""
        if [len(each) for each in holes] != [len(each) for each in self._holes]:
            return False
        absent = [int.from_bytes(each, "little") for each in holes]
        if any(bits >> pages for bits, (_, pages) in zip(absent, self._ranges, strict=True)):
            return False
        self._holes = [bytearray(each) for each in holes]
        self.absent = sum(bits.bit_count() for bits in absent)
        return True

    def put_back(self, gfn: int) -> bool:
        """The guest takes a page again; False if there is one, it isn't RAM, or the guest may have no more."""
        found = self._find(gfn)
        if found is None or self.is_present(gfn) or self.current >= self.maximum:
            return False
        holes, index = found
        holes[index >> 3] &= ~(1 << (index & 7)) & 0xFF
        self.absent -= 1
        return True


def ram_ranges(memory_map: Iterable[tuple[int, int, int]], ram_type: int = 1) -> list[tuple[int, int]]:
    """The whole pages of RAM in a map of (address, size, type), as (first gfn, pages)."""
    ranges = []
    for address, size, kind in memory_map:
        first, end = -(-address // PAGE_SIZE), (address + size) // PAGE_SIZE
        if kind == ram_type and end > first:
            ranges.append((first, end - first))
    return ranges

"""Guest memory that shows who touched it: guards around it, pages that nothing may touch, pages that never rest."""

from __future__ import annotations

import mmap
import random
import threading
from collections.abc import Callable
from typing import cast

from pyxen.abi.grant_table import NR_RESERVED
from pyxen.hypervisor.grants import GrantTable
from pyxen.hypervisor.memory import GuestMemory

PAGE = 4096
GUARD = 4 * PAGE
_CANARY = b"\xc5" * GUARD


class Pages:
    """``count`` pages with random contents between two guards, and a grant table over them.

    ``refs`` are what the guest has granted: by reference, the frame and whether for reading only. A back end's own
    view of a page outside of that is an error at once.
    """

    def __init__(self, rng: random.Random, count: int) -> None:
        self.rng = rng
        self.count = count
        self._backing = mmap.mmap(-1, count * PAGE + 2 * GUARD)
        self._backing[:GUARD] = self._backing[-GUARD:] = _CANARY
        whole = memoryview(self._backing)[GUARD : GUARD + count * PAGE]
        for gfn in range(count):
            whole[gfn * PAGE : (gfn + 1) * PAGE] = rng.randbytes(64) * (PAGE // 64)
        self.memory = _Watched([(0, whole)], self._look)
        self.grants = GrantTable(self.memory, threading.RLock())
        self._entries = self.grants.frames[0].page
        self.refs: dict[int, tuple[int, bool]] = {}
        self._ever: set[int] = set()
        self._frozen: dict[int, bytes] = {}

    def page(self, gfn: int) -> memoryview:
        """As the guest, by its own right."""
        return self.memory.regions[0].data[gfn * PAGE : (gfn + 1) * PAGE]

    def grant(self, ref: int, gfn: int, *, readonly: bool = False, flags: int = 1, domid: int = 0) -> None:
        """Fill a grant entry; what isn't plainly granted to Domain-0 counts as not granted."""
        self._entries.u32[2 * ref + 1] = gfn & 0xFFFFFFFF
        flags |= 4 if readonly else 0
        self._entries.u32[2 * ref] = flags | domid << 16
        if flags & 3 == 1 and domid == 0:
            self.refs[ref] = (gfn, bool(flags & 4))
            self._ever.add(gfn)
        else:
            self.refs.pop(ref, None)

    def revoke(self, ref: int) -> None:
        """Take a grant back, whether or not it is in use."""
        self._entries.u32[2 * ref] = 0
        self.refs.pop(ref, None)

    def freeze(self, *gfns: int) -> None:
        """These must stay as they are from now on."""
        for gfn in gfns:
            self._frozen[gfn] = bytes(self.page(gfn))

    def check(self) -> None:
        assert self._backing[:GUARD] == self._backing[-GUARD:] == _CANARY, "memory around the guest's has changed"
        for gfn, before in self._frozen.items():
            assert self.page(gfn) == before, f"page {gfn:#x} has changed, which must not be written"

    def given_back(self) -> None:
        assert not [ref for ref in self.grants.active if ref >= NR_RESERVED], "the back end has kept grants"

    def _look(self, gpa: int) -> None:
        assert gpa // PAGE in self._ever, f"frame {gpa // PAGE:#x} was never granted"


class _Watched(GuestMemory):
    """Tells of every view that Xen's side takes."""

    def __init__(self, regions: list[tuple[int, memoryview]], look: Callable[[int], None]) -> None:
        super().__init__(regions)
        self._look = look

    def view(self, gpa: int, length: int) -> memoryview:
        found = super().view(gpa, length)
        self._look(gpa)
        return found


class Restless:
    """A page whose every byte may be another when it is read again, as another CPU of the guest would have it.

    Stands in for a memoryview where the host reads and writes small things: rings and lists of segments.
    """

    def __init__(self, page: memoryview, change: Callable[[memoryview, int, int], None]) -> None:
        self._page = page
        self._change = change

    def view(self) -> memoryview:
        """To pass as the memoryview that it isn't."""
        return cast(memoryview, self)

    def __len__(self) -> int:
        return len(self._page)

    def __bytes__(self) -> bytes:
        return self._read(0, len(self._page))

    def __getitem__(self, key: slice) -> bytes:
        start, end, _ = key.indices(len(self._page))
        return self._read(start, end)

    def __setitem__(self, key: slice, value: bytes) -> None:
        self._page[key] = value

    def cast(self, kind: str) -> _Words:
        assert kind == "I"
        return _Words(self._page, self._change)

    def _read(self, start: int, end: int) -> bytes:
        data = bytes(self._page[start:end])
        self._change(self._page, start, end)
        return data


class _Words:
    """The same in words of 32 bits."""

    def __init__(self, page: memoryview, change: Callable[[memoryview, int, int], None]) -> None:
        self._page = page
        self._words = page.cast("I")
        self._change = change

    def __getitem__(self, index: int) -> int:
        value = self._words[index]
        self._change(self._page, index * 4, index * 4 + 4)
        return value

    def __setitem__(self, index: int, value: int) -> None:
        self._words[index] = value

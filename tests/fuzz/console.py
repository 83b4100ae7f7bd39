"""A hostile console ring: indices that can't be, a page that is written over while the host types."""

from __future__ import annotations

import mmap
import random
from collections import Counter

from pyxen.abi import console_ring as abi
from pyxen.backend.console import Console
from tests.fuzz.pages import Restless

_PAGE = 4096
_CANARY = b"\xc5" * _PAGE
_MOST_TYPED = 1 << 16


class HostileConsole:
    """See harness.Target."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.outcomes: Counter[str] = Counter()
        self._backing = mmap.mmap(-1, 3 * _PAGE)
        self._backing[:_PAGE] = self._backing[-_PAGE:] = _CANARY
        self._page = memoryview(self._backing)[_PAGE : 2 * _PAGE]
        self._words = self._page.cast("I")
        self._printed = 0
        view = self._page if rng.randrange(2) else Restless(self._page, self._flip).view()
        self.console = Console(view, self._write, lambda: None)

    def step(self) -> int:
        rng = self.rng
        if rng.randrange(2):
            index = rng.choice((abi.IN_CONS, abi.IN_PROD, abi.OUT_CONS, abi.OUT_PROD)) // 4
            near = self._words[index] + rng.choice((-1, 1, 7, 1023, 1024, 1025, 2047, 2048, 2049))
            self._words[index] = (near if rng.randrange(3) else rng.getrandbits(32)) & 0xFFFFFFFF
        beyond = bytes(self._page[abi.OUT_PROD + 4 :])
        if rng.randrange(3):
            self._printed = 0
            self.console.on_event()
            assert self._printed <= abi.OUT_SIZE, f"{self._printed} bytes out of a ring of {abi.OUT_SIZE}"
            self.outcomes["printed" if self._printed else "silent"] += 1
        else:
            self.console.type(rng.randbytes(rng.choice((0, 1, 100, 1024, 5000, 100_000))))
            self.outcomes["full" if self.console.full else "typed"] += 1
        assert len(self.console._typed) <= _MOST_TYPED
        assert self._page[abi.OUT_PROD + 4 :] == beyond, "the rest of the page has changed"
        return 1

    def check(self) -> None:
        assert self._backing[:_PAGE] == self._backing[-_PAGE:] == _CANARY, "memory around the page has changed"

    def close(self) -> None:
        pass

    def _write(self, data: bytes) -> None:
        self._printed += len(data)

    def _flip(self, page: memoryview, start: int, end: int) -> None:
        if end - start == 4 and self.rng.randrange(4) == 0:
            page[start:end] = self.rng.randbytes(4)

"""What was observed last, in a ring of fixed size: any thread writes, each reader has its own place in it.

Nobody waits for anybody: one step of a counter gives a writer its slot, and the number that lies beside each record
tells a reader whether it was overtaken.
"""

from __future__ import annotations

import itertools
import time
from typing import Any, Final

SIZE: Final = 8192
"""Records; a power of two. A few hundred bytes each."""

Record = tuple[Any, ...]
"""Its kind, when it began (``time.perf_counter_ns``), how long it took (ns) or None, the VCPU or None, then by kind."""


class Ring:
    """Records of any thread, the last ``size`` of them."""

    def __init__(self, size: int = SIZE) -> None:
        if size & (size - 1):
            raise ValueError(f"{size} is not a power of two")
        self._mask = size - 1
        self._slots: list[tuple[int, Record | None] | None] = [None] * size
        self._next = itertools.count().__next__

    def put(self, record: Record | None) -> int:
        """Note ``record``; its number. None is a mark that readers pass over."""
        number = self._next()
        self._slots[number & self._mask] = number, record
        return number

    def reader(self) -> Reader:
        """One that sees what is put from now on."""
        return Reader(self._slots, self.put(None) + 1)


class Reader:
    """One reader's place. ``origin_ns`` is when it began to look."""

    def __init__(self, slots: list[tuple[int, Record | None] | None], position: int) -> None:
        self._slots = slots
        self._mask = len(slots) - 1
        self._position = position
        self._lost = 0
        self.origin_ns = time.perf_counter_ns()

    def next(self) -> Record | None:
        """The oldest record that it hasn't seen; None if there is none (yet)."""
        while True:
            slot = self._slots[self._position & self._mask]
            if slot is None or slot[0] < self._position:
                return None
            number, record = slot
            if number > self._position:
                # Overtaken: the oldest that can be there still.
                oldest = number - self._mask
                self._lost += oldest - self._position
                self._position = oldest
                continue
            self._position += 1
            if record is not None:
                return record

    def take_lost(self) -> int:
        """How many were lost since the last call."""
        lost, self._lost = self._lost, 0
        return lost

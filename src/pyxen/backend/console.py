"""The first console: a page with two rings of bytes, without any handshake.

What the guest prints is taken inside of its notification, so a guest that waits for its output to be gone never does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from pyxen.abi import console_ring as abi

_TYPED_MAX = 64 * 1024


class Console:
    """``write`` is given what the guest prints; ``notify`` raises its event channel. ``most`` bytes may wait for it.

    Raises nothing, whatever the guest does: impossible indices are taken as a full or an empty ring.
    """

    def __init__(
        self, page: memoryview, write: Callable[[bytes], None], notify: Callable[[], None], most: int = _TYPED_MAX
    ) -> None:
        self._page = page
        self._u32 = page.cast("I")
        self._write = write
        self._notify = notify
        self._most = most
        self._typed = bytearray()
        self._lock = threading.Lock()

    @property
    def room(self) -> int:
        """How many bytes may be typed now, so that what waits for the guest to read is not too much."""
        return max(0, self._most - len(self._typed))

    @property
    def full(self) -> bool:
        return not self.room

    def on_event(self) -> None:
        """The guest has printed something, or read something. From any thread."""
        with self._lock:
            moved = self._drain()
            moved |= self._type()
        if moved:
            self._notify()

    def type(self, data: bytes) -> None:
        """Give the guest something to read, at most ``room``; what doesn't fit waits until it has read.

        From any thread.
        """
        with self._lock:
            self._typed += data[: self.room]
            moved = self._type()
        if moved:
            self._notify()

    def _drain(self) -> bool:
        cons, prod = self._u32[abi.OUT_CONS >> 2], self._u32[abi.OUT_PROD >> 2]
        count = (prod - cons) & 0xFFFF_FFFF
        if count == 0:
            return False
        if count <= abi.OUT_SIZE:
            self._write(self._printed(cons, count))
        self._u32[abi.OUT_CONS >> 2] = prod
        return True

    def _printed(self, cons: int, count: int) -> bytes:
        start = cons & (abi.OUT_SIZE - 1)
        first = min(count, abi.OUT_SIZE - start)
        page = self._page
        return bytes(page[abi.OUT + start : abi.OUT + start + first]) + bytes(page[abi.OUT : abi.OUT + count - first])

    def _type(self) -> bool:
        moved = False
        while self._typed:
            prod = self._u32[abi.IN_PROD >> 2]
            used = (prod - self._u32[abi.IN_CONS >> 2]) & 0xFFFF_FFFF
            start = prod & (abi.IN_SIZE - 1)
            count = min(len(self._typed), abi.IN_SIZE - used, abi.IN_SIZE - start)
            if count <= 0:
                break
            self._page[abi.IN + start : abi.IN + start + count] = self._typed[:count]
            self._u32[abi.IN_PROD >> 2] = (prod + count) & 0xFFFF_FFFF
            del self._typed[:count]
            moved = True
        return moved

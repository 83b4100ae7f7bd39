"""The back end's side of a shared ring.

The guest may write anything into its pages at any time: each request is copied once before it is looked at, and the
private indices here are the only ones believed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

from pyxen.abi import io_ring as abi


class RingError(Exception):
    """The front end's index cannot be right: it is to be disconnected."""


class BackRing:
    """``pages`` are the guest's, of 4,096 bytes each; an entry may lie across two of them.

    Continues where the indices in the pages stand, so that a back end can take over a running ring.
    """

    def __init__(self, pages: Sequence[memoryview], entry_size: int) -> None:
        self.size = abi.slots(len(pages), entry_size)
        self._pages = tuple(pages)
        self._entry = entry_size
        self._mask = self.size - 1
        self._u32 = pages[0].cast("I")
        self._published = self._u32[abi.RSP_PROD >> 2]
        self.responded = self._published
        """Responses written, published or not."""
        self.consumed = self._published
        """Requests taken."""
        self._fence = threading.Lock()

    def waiting(self) -> int:
        """Requests that the guest has made and nobody has taken. Raises RingError."""
        count = (self._u32[abi.REQ_PROD >> 2] - self.consumed) & 0xFFFF_FFFF
        if count > self.size - ((self.consumed - self.responded) & 0xFFFF_FFFF):
            raise RingError(f"{count} requests in a ring of {self.size}")
        return count

    def take(self) -> bytes:
        """A copy of the next request; ``waiting`` has said that there is one."""
        index = self.consumed
        self.consumed = (index + 1) & 0xFFFF_FFFF
        return self._read(abi.HEADER_SIZE + (index & self._mask) * self._entry)

    def take_all(self) -> Iterator[bytes]:
        """Copies of the requests that wait now."""
        for _ in range(self.waiting()):
            yield self.take()

    def peek(self, ahead: int = 0) -> bytes:
        """As ``take``, of a later request, without taking it."""
        index = self.consumed + ahead
        return self._read(abi.HEADER_SIZE + (index & self._mask) * self._entry)

    def respond(self, response: bytes) -> None:
        """Write the next response; the guest doesn't see it before ``publish``."""
        index = self.responded
        self.responded = (index + 1) & 0xFFFF_FFFF
        self._write(abi.HEADER_SIZE + (index & self._mask) * self._entry, response)

    def publish(self) -> bool:
        """Show the responses to the guest; returns whether it has to be notified."""
        old, new = self._published, self.responded
        if old == new:
            return False
        self._u32[abi.RSP_PROD >> 2] = new
        self._published = new
        self._full_barrier()
        return abi.crossed(self._u32[abi.RSP_EVENT >> 2], old, new)

    def ask_for_event(self, more: int = 1) -> bool:
        """Let the guest notify us once ``more`` requests wait; returns whether so many do already. Raises RingError."""
        self._u32[abi.REQ_EVENT >> 2] = (self.consumed + more) & 0xFFFF_FFFF
        self._full_barrier()
        return self.waiting() >= more

    def _full_barrier(self) -> None:
        """Order our store before the load that follows, which x86 alone does not: taking a lock is a locked operation.

        Without it guest and back end can each miss the other's last step, and both sleep.
        """
        self._fence.acquire(blocking=False)
        self._fence.release()

    def _read(self, start: int) -> bytes:
        page, offset = divmod(start, abi.PAGE_SIZE)
        head = bytes(self._pages[page][offset : offset + self._entry])
        missing = self._entry - len(head)
        return head + bytes(self._pages[page + 1][:missing]) if missing else head

    def _write(self, start: int, data: bytes) -> None:
        page, offset = divmod(start, abi.PAGE_SIZE)
        fits = min(len(data), abi.PAGE_SIZE - offset)
        self._pages[page][offset : offset + fits] = data[:fits]
        if fits < len(data):
            self._pages[page + 1][: len(data) - fits] = data[fits:]

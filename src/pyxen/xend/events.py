"""What has happened, for whoever asks: one ring of events that every subscriber reads at its own speed.

A subscriber holds nothing but the sequence number that it has read to; the ring is everybody's queue. So a reader that
doesn't read costs nothing. Once the ring has passed it by, it is told by an event of the kind ``events-lost`` whose
sequence is that of the last event it missed, and goes on behind that.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

from pyxen.api import Event

LOST = "events-lost"

_log = logging.getLogger(__name__)


class Events:
    """The last ``limit`` events, the oldest of this run numbered ``first``. Belongs to one event loop's thread."""

    def __init__(self, limit: int = 10_000, *, first: int = 1) -> None:
        self._kept: deque[Event] = deque(maxlen=limit)
        self._last = first - 1
        self._published = asyncio.Event()
        self._callbacks: list[Callable[[Event], None]] = []
        self._closed = False

    @property
    def last(self) -> int:
        """The sequence number given out last."""
        return self._last

    def publish(
        self,
        kind: str,
        *,
        domid: int | None = None,
        name: str | None = None,
        uuid: str | None = None,
        reason: str | None = None,
        **data: Any,
    ) -> Event:
        """Number, keep and deliver an event. Does not wait, and never fails because of who listens."""
        self._last += 1
        event = Event(self._last, time.time(), kind, domid=domid, name=name, uuid=uuid, reason=reason, data=data)
        self._kept.append(event)
        self._wake()
        for callback in list(self._callbacks):
            try:
                callback(event)
            except Exception:
                _log.exception("a listener failed on %s", kind)
        return event

    def on(self, callback: Callable[[Event], None]) -> Callable[[], None]:
        """Call ``callback`` with each event from now on, inside ``publish``; returns what ends that."""
        self._callbacks.append(callback)

        def off() -> None:
            if callback in self._callbacks:
                self._callbacks.remove(callback)

        return off

    def subscribe(self, after: int | None = None) -> AsyncIterator[Event]:
        """All events whose sequence is greater than ``after``, then new ones as they come; None: only those.

        What was missed in between is counted from this call, not from the first step of the iteration.
        Ends when xend does (:meth:`close`).
        """
        return self._follow(self._last if after is None else after)

    def close(self) -> None:
        """End all subscriptions, each after what it hasn't read yet."""
        self._closed = True
        self._wake()

    async def until_closed(self) -> None:
        """Return when xend ends."""
        while not self._closed:
            await self._published.wait()

    def _wake(self) -> None:
        self._published.set()
        self._published = asyncio.Event()

    async def _follow(self, position: int) -> AsyncIterator[Event]:
        if position > self._last:
            # A number from another life of xend: its events are gone.
            position = self._last
            yield self._lost(position)
        while True:
            published = self._published
            oldest = self._last - len(self._kept)
            if position < oldest:
                position = oldest
                yield self._lost(position)
            elif position < self._last:
                position += 1
                yield self._kept[position - oldest - 1]
            elif self._closed:
                return
            else:
                await published.wait()

    def _lost(self, sequence: int) -> Event:
        return Event(sequence, time.time(), LOST, reason="they are no longer kept")

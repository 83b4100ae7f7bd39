"""The guest's way to the store: two rings of bytes in one page of its memory.

Indices run freely and are reduced when used. The guest owns ``req_prod`` and ``rsp_cons`` and may write anything there:
what cannot be right is noted in the page's error field, and the ring is dead until the guest asks to reconnect.
"""

from __future__ import annotations

from collections.abc import Callable

from pyxen.abi import xs_wire as wire
from pyxen.xenstore.connection import Connection
from pyxen.xenstore.errors import ProtocolError
from pyxen.xenstore.store import Store

_MASK = wire.RING_SIZE - 1
_MOVES_AT_ONCE = 64
"""A guest that never stops writing must not keep its back ends from their work."""


class Ring:
    """The connection of one guest. ``page`` is its page of 4,096 bytes; ``notify`` raises its event channel.

    ``poll`` is to be called whenever the guest has sent an event. ``wake`` is called when the store has something for
    the guest that was not asked for just now: whoever owns the ring then calls ``poll`` soon.
    """

    def __init__(
        self,
        store: Store,
        domid: int,
        page: memoryview,
        notify: Callable[[], None],
        *,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        self.connection = Connection(store, domid, wake=self._woken)
        self._page = page
        self._u32 = page.cast("I")
        self._notify = notify
        self._wake = wake
        self._polling = False
        self._dead = False
        self._set(wire.SERVER_FEATURES, wire.FEATURE_RECONNECTION | wire.FEATURE_ERROR | wire.FEATURE_WATCH_DEPTH)
        store.on_release(domid, self._released)

    def poll(self) -> None:
        """Take in what the guest has written, give it what there is for it."""
        self._polling = True
        try:
            if self._get(wire.CONNECTION) == wire.RECONNECT:
                self._reconnect()
            moves = 0
            while not self._dead and moves < _MOVES_AT_ONCE and (self._take() or self._give()):
                moves += 1
            if moves:
                self._notify()
            if moves == _MOVES_AT_ONCE:
                self._wake()
        finally:
            self._polling = False

    def _take(self) -> bool:
        """Move one stretch of requests, unless the guest leaves too many answers unread."""
        cons, prod = self._get(wire.REQ_CONS), self._get(wire.REQ_PROD)
        waiting = (prod - cons) & 0xFFFF_FFFF
        if waiting > wire.RING_SIZE:
            self._fail(wire.RingError.RINGIDX)
            return False
        if self.connection.congested:
            return False
        start = cons & _MASK
        stretch = min(waiting, wire.RING_SIZE - start)
        data = bytes(self._page[wire.REQUESTS + start : wire.REQUESTS + start + stretch])
        self._set(wire.REQ_CONS, cons + stretch)
        try:
            self.connection.receive(data)
        except ProtocolError:
            self._fail(wire.RingError.PROTO)
        return stretch > 0

    def _give(self) -> bool:
        cons, prod = self._get(wire.RSP_CONS), self._get(wire.RSP_PROD)
        waiting = (prod - cons) & 0xFFFF_FFFF
        if waiting > wire.RING_SIZE:
            self._fail(wire.RingError.RINGIDX)
            return False
        output = self.connection.output
        start = prod & _MASK
        stretch = min(len(output), wire.RING_SIZE - waiting, wire.RING_SIZE - start)
        self._page[wire.RESPONSES + start : wire.RESPONSES + start + stretch] = output[:stretch]
        self._set(wire.RSP_PROD, prod + stretch)
        del output[:stretch]
        return stretch > 0

    def _reconnect(self) -> None:
        self.connection.reset()
        self._dead = False
        for index in (wire.REQ_CONS, wire.REQ_PROD, wire.RSP_CONS, wire.RSP_PROD):
            self._set(index, 0)
        self._set(wire.ERROR, wire.RingError.NONE)
        self._set(wire.CONNECTION, wire.CONNECTED)
        self._notify()

    def _fail(self, error: wire.RingError) -> None:
        self._dead = True
        self.connection.reset()
        self._set(wire.ERROR, error)
        self._notify()

    def _released(self) -> None:
        self._dead = True
        self.connection.reset()

    def _woken(self) -> None:
        if not self._polling:
            self._wake()

    def _get(self, offset: int) -> int:
        return self._u32[offset >> 2]

    def _set(self, offset: int, value: int) -> None:
        self._u32[offset >> 2] = value & 0xFFFF_FFFF

"""One end of the wire protocol: bytes in, bytes out, whoever carries them.

``receive`` takes bytes as they come, cut anywhere; ``output`` holds what is to be sent. Whoever carries the bytes stops
calling ``receive`` while ``congested``: a domain that asks without fetching the answers costs a bounded amount of
memory. Its watch events are merged where they say the same, and beyond the quota to one for each watch; so are those
of a program of domain 0 that has stopped reading, which a guest could otherwise fill our memory with.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from pyxen.abi.xs_wire import HEADER, PAYLOAD_MAX, Error, Op
from pyxen.xenstore.errors import ProtocolError, XsError
from pyxen.xenstore.operations import Caller
from pyxen.xenstore.path import Path
from pyxen.xenstore.requests import answer
from pyxen.xenstore.store import Store
from pyxen.xenstore.transaction import Transaction
from pyxen.xenstore.watch import Watch

Observer = Callable[[int, int, int, int, bytes, int, bytes], None]
"""Gets when it began (``time.perf_counter_ns``), how long it took (ns), the request's type, transaction and payload,
its answer's type (Op.ERROR: refused) and payload. A watch event is a request without an answer."""

_CONGESTED = 4 * (HEADER.size + PAYLOAD_MAX)


class Connection:
    """A domain, or a program of domain 0, and the store. ``wake`` is called when there is something new to send."""

    def __init__(self, store: Store, domid: int, *, wake: Callable[[], None] = lambda: None) -> None:
        self.store = store
        self.domid = domid
        self.transactions: dict[int, Transaction] = {}
        self._next_transaction = 0
        self.observer: Observer | None = None
        """Told of every request and watch event, while somebody traces the domain."""
        self._wake = wake
        self._input = bytearray()
        self._output = bytearray()
        self._events: deque[bytes] = deque()
        self._queued: set[bytes] = set()

    @property
    def caller(self) -> Caller:
        """On whose behalf requests are carried out."""
        return Caller(self.domid, self.store.targets.get(self.domid))

    @property
    def congested(self) -> bool:
        """Too much waits to be sent: take no further requests."""
        return len(self._output) > _CONGESTED

    @property
    def output(self) -> bytearray:
        """What is to be sent next; the carrier deletes from its front what it has sent."""
        while self._events and len(self._output) <= PAYLOAD_MAX:
            event = self._events.popleft()
            self._queued.discard(event)
            self._output += event
        return self._output

    def receive(self, data: bytes | bytearray | memoryview) -> None:
        """Take in bytes, answer the messages that are complete.

        Raises ProtocolError for a message too long to be one; the connection is then to be closed.
        """
        self._input += data
        while len(self._input) >= HEADER.size and not self.congested:
            op, request, tx, length = HEADER.unpack_from(self._input)
            if length > PAYLOAD_MAX:
                raise ProtocolError(f"a message of {length} bytes")
            end = HEADER.size + length
            if len(self._input) < end:
                break
            payload = bytes(self._input[HEADER.size : end])
            del self._input[:end]
            self._answer(op, request, tx, payload)

    def deliver(self, watch: Watch, path: Path) -> None:
        """Queue a watch event."""
        quota = self.store.quota
        if len(self._events) >= (quota.events if self.domid else quota.tool_events):
            path = watch.path
        payload = watch.spelled(path, self.domid).encode() + b"\0" + watch.token + b"\0"
        if len(payload) > PAYLOAD_MAX:
            return  # as in Xen: no client could take it, and who chose so long a token knows
        event = HEADER.pack(Op.WATCH_EVENT, 0, 0, len(payload)) + payload
        if self.observer is not None:
            self.observer(time.perf_counter_ns(), 0, Op.WATCH_EVENT, 0, payload, Op.WATCH_EVENT, b"")
        if event not in self._queued:
            self._events.append(event)
            self._queued.add(event)
        self._wake()

    def begin(self) -> int:
        """Start a transaction, return its id. Raises XsError ENOSPC beyond the quota."""
        quota = self.store.quota
        if self.domid != 0 and len(self.transactions) >= quota.transactions:
            raise XsError(Error.ENOSPC)
        while True:
            self._next_transaction = self._next_transaction % 0xFFFF_FFFF + 1
            if self._next_transaction not in self.transactions:
                break
        steps = None if self.domid == 0 else quota.transaction_steps
        self.transactions[self._next_transaction] = Transaction(self.store.tree, steps=steps)
        return self._next_transaction

    def reset(self) -> None:
        """Forget watches, transactions and half-received messages, as for a guest that has started anew."""
        self.forget_watches()
        self._input.clear()
        self._output.clear()

    def forget_watches(self) -> None:
        """RESET_WATCHES: also ends transactions, but answers that wait are still sent."""
        self.store.forget(self)
        self.transactions.clear()
        self._events.clear()
        self._queued.clear()

    def _answer(self, op: int, request: int, tx: int, payload: bytes) -> None:
        kind = op
        began = time.perf_counter_ns() if self.observer is not None else 0
        try:
            reply = answer(self, op, tx, payload)
            if len(reply) > PAYLOAD_MAX:
                raise XsError(Error.E2BIG)
        except XsError as error:
            kind, reply = Op.ERROR, error.error.name.encode() + b"\0"
        if self.observer is not None:
            self.observer(began, time.perf_counter_ns() - began, op, tx, payload, kind, reply)
        self._output += HEADER.pack(kind, request, tx, len(reply)) + reply
        self._wake()

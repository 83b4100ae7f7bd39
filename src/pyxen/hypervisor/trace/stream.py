"""Who looks: connections that get the records as lines of JSON. All of it on the main loop.

Records are decoded in small portions, for at most a part of the time, so that a guest that makes them without end is
not stopped by being watched. A connection that isn't read holds up nobody: its reader falls behind and loses.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import time
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from pyxen.api import TRACE_KINDS, TraceRecord
from pyxen.errors import InvalidRequest, ResourceExhausted
from pyxen.hypervisor.domain import Domain
from pyxen.hypervisor.kvm_machine import KvmMachine
from pyxen.hypervisor.loop import Loop, Timer
from pyxen.hypervisor.trace.decode import decode, kind_of
from pyxen.hypervisor.trace.observed import Observed
from pyxen.hypervisor.trace.ring import Reader, Ring
from pyxen.xenstore.connection import Connection

_PERIOD_NS: Final = 20_000_000
_SHARE_NS: Final = _PERIOD_NS // 4
"""For all connections together, in each period."""
_PORTION: Final = 64
_MOST_CONNECTIONS: Final = 8
_LAST_WORDS_S: Final = 0.5


class Tracing:
    """The domain's hooks, in place while somebody looks, and those who look."""

    def __init__(self, machine: KvmMachine, domain: Domain, store: Connection, loop: Loop) -> None:
        self._machine = machine
        self._domain = domain
        self._store = store
        self._loop = loop
        self._timer = Timer(loop, self._tick)
        self._ring: Ring | None = None
        self._streams: list[_Stream] = []
        self._ended: str | None = None

    def open(self, connection: socket.socket, arguments: Mapping[str, Any]) -> None:
        """Answer, and from then on send what happens. ``only`` of the arguments is a list of kinds; all if empty.

        Raises InvalidRequest and ResourceExhausted.
        """
        only = arguments.get("only") or []
        if not isinstance(only, list) or any(kind not in TRACE_KINDS for kind in only):
            raise InvalidRequest(
                f"there is no such kind of record: {str(only)[:80]}", hint=f"There are {', '.join(TRACE_KINDS)}."
            )
        if len(self._streams) >= _MOST_CONNECTIONS:
            raise ResourceExhausted(f"the domain is traced by {_MOST_CONNECTIONS} others already")
        if self._ring is None:
            self._ring = self._hook()
        self._streams.append(_Stream(connection, self._ring.reader(), frozenset(only)))
        self._loop.selector.register(connection, selectors.EVENT_READ, self._listener(self._streams[-1]))
        self._timer.arm(0)

    def end(self, reason: str) -> None:
        """The domain has ended: everybody gets what there is, and this word."""
        self._ended = self._ended or reason

    def close(self) -> None:
        """Let go of everybody, after their last words if they take them now."""
        self.end("destroyed")
        for stream in list(self._streams):
            stream.finish(self._ended or "", time.perf_counter_ns() + _SHARE_NS)
            self._drop(stream)
        self._timer.close()

    def _hook(self) -> Ring:
        ring = Ring()
        observed = Observed(self._domain, ring)
        self._machine.attach(observed)
        self._machine.observe(observed.exit)
        self._domain.evtchn.observer = observed.event
        self._store.observer = observed.xenstore
        return ring

    def _unhook(self) -> None:
        self._machine.attach(self._domain)
        self._machine.observe(None)
        self._domain.evtchn.observer = None
        self._store.observer = None
        self._ring = None

    def _tick(self) -> None:
        for stream in list(self._streams):
            until = time.perf_counter_ns() + _SHARE_NS // max(1, len(self._streams))
            if not stream.pump(until, self._ended):
                self._drop(stream)
        if self._streams:
            self._timer.arm(_PERIOD_NS)

    def _listener(self, stream: _Stream) -> Any:
        def listen(mask: int) -> None:
            if stream.hung_up():
                self._drop(stream)

        return listen

    def _drop(self, stream: _Stream) -> None:
        if stream in self._streams:
            self._streams.remove(stream)
            self._loop.selector.unregister(stream.connection)
            stream.connection.close()
        if not self._streams and self._ring is not None:
            self._unhook()


class _Stream:
    """One connection and its place in the ring."""

    def __init__(self, connection: socket.socket, reader: Reader, only: frozenset[str]) -> None:
        self.connection = connection
        self._reader = reader
        self._only = only
        self._encode = msgspec.json.Encoder().encode
        self._waiting = self._encode({"return": {}}) + b"\n"
        self._drained = False
        self._said_end = False

    def pump(self, until_ns: int, ended: str | None) -> bool:
        """Send what there is, until that time; False: there is no more to come."""
        try:
            while self._flush():
                if self._said_end:
                    return False
                if time.perf_counter_ns() >= until_ns:
                    return True
                self._waiting = self._portion(ended)
                if self._drained and not self._waiting:
                    return True
        except OSError:
            return False
        return True

    def finish(self, ended: str, until_ns: int) -> None:
        """The same for the last time, and waiting a little for a reader that is behind."""
        with contextlib.suppress(OSError):
            self.connection.settimeout(_LAST_WORDS_S)
            while not self._said_end and time.perf_counter_ns() < until_ns:
                self.connection.sendall(self._waiting)
                self._waiting = self._portion(ended)
            self.connection.sendall(self._waiting)
            if not self._said_end:
                self.connection.sendall(self._line(TraceRecord("end", ended)))

    def hung_up(self) -> bool:
        try:
            return not self.connection.recv(4096)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def _flush(self) -> bool:
        """Whether everything is sent."""
        while self._waiting:
            try:
                sent = self.connection.send(self._waiting)
            except BlockingIOError:
                return False
            self._waiting = self._waiting[sent:]
        return True

    def _portion(self, ended: str | None) -> bytes:
        lines = []
        reader = self._reader
        for _ in range(_PORTION):
            record = reader.next()
            if lost := reader.take_lost():
                lines.append(self._line(TraceRecord("lost", count=lost)))
            self._drained = record is None
            if record is None:
                if ended is not None:
                    lines.append(self._line(TraceRecord("end", ended)))
                    self._said_end = True
                break
            if not self._only or kind_of(record) in self._only:
                lines.append(self._line(decode(record, reader.origin_ns)))
        return b"".join(lines)

    def _line(self, record: TraceRecord) -> bytes:
        return self._encode(record) + b"\n"

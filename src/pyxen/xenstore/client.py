"""A blocking client of a domain's xenstore socket, for the command line and for tests."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pyxen.abi.xs_wire import HEADER, PAYLOAD_MAX, Error, Op
from pyxen.errors import EngineError, Unavailable
from pyxen.xenstore.errors import XsError

_ATTEMPTS = 100


class StoreClient:
    """One connection. Methods raise XsError for what the store refuses, Unavailable when it is gone."""

    def __init__(self, path: Path, *, timeout: float | None = 10.0) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout)
        self._input = bytearray()
        self._events: deque[tuple[str, str]] = deque()
        self._request = 0
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise Unavailable(f"the store at {path} does not answer: {error.strerror}") from error

    def __enter__(self) -> StoreClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def read(self, path: str, *, tx: int = 0) -> bytes:
        return self.request(Op.READ, _nul(path), tx=tx)

    def names(self, path: str, *, tx: int = 0) -> list[str]:
        """The names of the children, however many."""
        try:
            return _strings(self.request(Op.DIRECTORY, _nul(path), tx=tx))
        except XsError as error:
            if error.error is not Error.E2BIG:
                raise
        return self._long_list(path, tx)

    def write(self, path: str, value: bytes, *, tx: int = 0) -> None:
        self.request(Op.WRITE, _nul(path) + value, tx=tx)

    def mkdir(self, path: str, *, tx: int = 0) -> None:
        self.request(Op.MKDIR, _nul(path), tx=tx)

    def remove(self, path: str, *, tx: int = 0) -> None:
        self.request(Op.RM, _nul(path), tx=tx)

    def perms(self, path: str, *, tx: int = 0) -> list[str]:
        return _strings(self.request(Op.GET_PERMS, _nul(path), tx=tx))

    def set_perms(self, path: str, perms: Sequence[str], *, tx: int = 0) -> None:
        self.request(Op.SET_PERMS, _nul(path) + b"".join(map(_nul, perms)), tx=tx)

    def watch(self, path: str, token: str) -> None:
        """An event comes at once, then one for each change."""
        self.request(Op.WATCH, _nul(path) + _nul(token))

    def unwatch(self, path: str, token: str) -> None:
        self.request(Op.UNWATCH, _nul(path) + _nul(token))

    def next_event(self) -> tuple[str, str]:
        """Wait for a watch event: path and token."""
        while not self._events:
            op, _, payload = self._receive()
            if op == Op.WATCH_EVENT:
                self._note_event(payload)
        return self._events.popleft()

    @contextmanager
    def transaction(self) -> Iterator[int]:
        """The id to pass as ``tx``. Committed at the end (XsError EAGAIN: do it all again), aborted by an exception."""
        tx = int(self.request(Op.TRANSACTION_START, b"\0").rstrip(b"\0"))
        try:
            yield tx
        except BaseException:
            self.request(Op.TRANSACTION_END, b"F\0", tx=tx)
            raise
        self.request(Op.TRANSACTION_END, b"T\0", tx=tx)

    def request(self, op: Op, payload: bytes, *, tx: int = 0) -> bytes:
        """Send one message, wait for its reply's payload."""
        if len(payload) > PAYLOAD_MAX:
            raise XsError(Error.E2BIG)
        self._request = (self._request + 1) & 0xFFFF_FFFF
        try:
            self._socket.sendall(HEADER.pack(op, self._request, tx, len(payload)) + payload)
        except OSError as error:
            raise self._gone(error) from error
        while True:
            kind, request, reply = self._receive()
            if kind == Op.WATCH_EVENT:
                self._note_event(reply)
            elif request == self._request:
                break
        if kind == Op.ERROR:
            name = reply.rstrip(b"\0").decode("ascii", "replace")
            raise XsError(Error.__members__.get(name, Error.EIO))
        return reply

    def _long_list(self, path: str, tx: int) -> list[str]:
        for _ in range(_ATTEMPTS):
            generations, names = set(), b""
            while not names.endswith(b"\0\0") and names != b"\0":
                part = self.request(Op.DIRECTORY_PART, _nul(path) + _nul(str(len(names))), tx=tx)
                generation, _, part = part.partition(b"\0")
                generations.add(generation)
                names += part
            if len(generations) == 1:
                return _strings(names[:-1])
        raise EngineError(f"{path} in the store at {self._path} changes faster than it can be read")

    def _note_event(self, payload: bytes) -> None:
        path, token = _strings(payload)[:2]
        self._events.append((path, token))

    def _receive(self) -> tuple[int, int, bytes]:
        self._fill(HEADER.size)
        op, request, _, length = HEADER.unpack_from(self._input)
        self._fill(HEADER.size + length)
        payload = bytes(self._input[HEADER.size : HEADER.size + length])
        del self._input[: HEADER.size + length]
        return op, request, payload

    def _fill(self, count: int) -> None:
        while len(self._input) < count:
            try:
                data = self._socket.recv(16384)
            except OSError as error:
                raise self._gone(error) from error
            if not data:
                raise self._gone(None)
            self._input += data

    def _gone(self, error: OSError | None) -> Unavailable:
        why = "no answer in time" if isinstance(error, TimeoutError) else "it has closed the connection"
        return Unavailable(f"the store at {self._path} is gone: {why}")


def _nul(text: str) -> bytes:
    return text.encode() + b"\0"


def _strings(payload: bytes) -> list[str]:
    return [part.decode("utf-8", "replace") for part in payload.split(b"\0")[:-1]]

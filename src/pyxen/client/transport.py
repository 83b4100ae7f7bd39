"""Where xend is, and HTTP to it: over a unix socket, or TCP with a token.

By h11 in place of http.client, which loads the standard library's e-mail and TLS: a quarter of a short command's time.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import h11

from pyxen.client._calls import Call
from pyxen.errors import InvalidRequest, OutcomeUnknown, PyxenError, Unavailable
from pyxen.paths import find_roots

_READ = 1 << 16
START_HINT = "Start it with: xend start"
DEFAULT_TIMEOUT_S = 120.0
"""xend answers an order when it has been carried out, and a start may mean unpacking a kernel and making a disk."""


@dataclass(frozen=True, slots=True)
class Address:
    """One xend: either ``socket`` or ``host`` and ``port`` with a ``token``."""

    socket: Path | None = None
    host: str = "localhost"
    port: int = 0
    token: str | None = None

    def __str__(self) -> str:
        return str(self.socket) if self.socket else f"http://{self.netloc}"

    @property
    def netloc(self) -> str:
        """``HOST:PORT`` as in a URL and a Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}" if self.port else host

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}


def find_address(environ: Mapping[str, str] = os.environ) -> Address:
    """``XM_SERVER`` (``unix:///PATH`` or ``http://HOST:PORT``), else the socket of this user's xend."""
    roots = find_roots(environ)
    server = environ.get("XM_SERVER")
    if not server:
        return Address(socket=roots.socket)
    from urllib.parse import urlsplit

    hint = "Say unix:///run/xend/xend.sock or http://127.0.0.1:8000"
    try:
        url = urlsplit(server)
        port = url.port
    except ValueError as error:
        raise InvalidRequest(f"XM_SERVER: '{server}' is not an address: {error}", hint=hint) from error
    if url.scheme == "unix" and not url.netloc and url.path.startswith("/"):
        return Address(socket=Path(url.path))
    if url.scheme == "http" and url.hostname and url.path in ("", "/"):
        return Address(host=url.hostname, port=port or 8000, token=_token(environ, roots.token))
    raise InvalidRequest(f"XM_SERVER: '{server}' is not an address of xend", hint=hint)


def _token(environ: Mapping[str, str], path: Path) -> str | None:
    if token := environ.get("XM_TOKEN"):
        return token
    with contextlib.suppress(OSError):
        return path.read_text().strip() or None
    return None


def unreachable(address: Address, error: OSError) -> PyxenError:
    """What a failed connection means to a user."""
    if isinstance(error, PermissionError):
        return Unavailable(f"no permission to talk to xend at {address}", hint="Run xm as the user who runs xend")
    if isinstance(error, FileNotFoundError | ConnectionRefusedError | NotADirectoryError):
        return Unavailable(f"xend is not running (no answer on {address})", hint=START_HINT)
    if isinstance(error, TimeoutError):
        return Unavailable(f"xend does not accept connections on {address}")
    return Unavailable(f"cannot connect to xend on {address}: {error.strerror or error}")


def lost(call: Call[object], address: Address, error: Exception) -> PyxenError:
    """What it means that no (whole) answer came to a request that had been sent."""
    timeout = isinstance(error, TimeoutError)
    why = "xend did not answer in time" if timeout else "the connection to xend was lost"
    if call.safe:
        return Unavailable(f"{why} ({address})")
    return OutcomeUnknown(
        f"{why} after the request had been sent: it may or may not have been carried out",
        hint="Look with: xm list",
    )


class _Answer:
    """What comes to one request: its status, then its body in pieces."""

    def __init__(self, connection: _Connection, status: int) -> None:
        self.status = status
        self._connection = connection

    def pieces(self) -> Iterator[bytes]:
        """Up to the end. Raises OSError, h11.RemoteProtocolError if it has none."""
        while not isinstance(event := self._connection.event(), h11.EndOfMessage):
            if isinstance(event, h11.Data):
                yield bytes(event.data)

    def lines(self) -> Iterator[bytes]:
        """The body by lines, each as soon as it is whole; the last one may lack its end."""
        rest = b""
        for piece in self.pieces():
            *whole, rest = (rest + piece).split(b"\n")
            for line in whole:
                yield line + b"\n"
        if rest:
            yield rest


class _Connection:
    """HTTP over what ``address`` names. Raises OSError, and h11.RemoteProtocolError for what no HTTP is."""

    def __init__(self, address: Address, timeout: float | None) -> None:
        if address.socket is None:
            self._socket = socket.create_connection((address.host, address.port or 80), timeout)
        else:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            try:
                self._socket.settimeout(timeout)
                self._socket.connect(os.fspath(address.socket))
            except OSError:
                self.close()
                raise
        self._protocol = h11.Connection(h11.CLIENT)

    def ask(self, call: Call[object], headers: Mapping[str, str], timeout: float | None) -> _Answer:
        """Send a request; its answer when that begins. ``timeout`` is the longest silence, from now on."""
        self._socket.settimeout(timeout)
        if self._protocol.our_state is h11.DONE:
            self._protocol.start_next_cycle()
        body = call.body or b""
        if body or call.method != "GET":
            headers = {**headers, "Content-Length": str(len(body))}
        request = h11.Request(method=call.method, target=call.target, headers=list(headers.items()))
        parts = (request, h11.Data(data=body), h11.EndOfMessage())
        self._socket.sendall(b"".join(self._protocol.send(part) or b"" for part in parts))
        while not isinstance(event := self.event(), h11.Response):
            pass
        return _Answer(self, event.status_code)

    def event(self) -> h11.Event:
        """The next of an answer's parts."""
        while (event := self._protocol.next_event()) is h11.NEED_DATA:
            self._protocol.receive_data(self._socket.recv(_READ))
        if isinstance(event, h11.ConnectionClosed) or event is h11.PAUSED:
            raise h11.RemoteProtocolError("the answer has no end")
        return cast("h11.Event", event)

    def wait(self, timeout: float | None) -> None:
        """Bear so many seconds of silence from now on."""
        self._socket.settimeout(timeout)

    def close(self) -> None:
        self._socket.close()

    @property
    def reusable(self) -> bool:
        """Another request can be sent: the last one's answer is whole, and nobody has hung up."""
        return self._protocol.our_state is h11.DONE and self._protocol.their_state is h11.DONE

    @property
    def stale(self) -> bool:
        """The other side has hung up (or said what nobody asked for)."""
        readable, _, _ = select.select([self._socket], [], [], 0)
        return bool(readable)


class Transport:
    """Requests to one xend, one at a time, over a connection that is kept."""

    def __init__(self, address: Address, *, timeout: float | None = DEFAULT_TIMEOUT_S) -> None:
        self.address = address
        self._timeout = timeout
        self._connection: _Connection | None = None

    def request(self, call: Call[object]) -> tuple[int, bytes]:
        """Status and body. Raises Unavailable if nothing was sent, OutcomeUnknown if an order's answer was lost."""
        if self._connection is not None and self._connection.stale:
            self.close()
        if self._connection is None:
            self._connection = self._open()
        connection = self._connection
        try:
            answer = connection.ask(call, self._headers(call), None if call.slow else self._timeout)
            body = b"".join(answer.pieces())
        except (OSError, h11.RemoteProtocolError) as error:
            self.close()
            raise lost(call, self.address, error) from error
        if not connection.reusable:
            self.close()
        return answer.status, body

    @contextlib.contextmanager
    def stream(self, call: Call[object], *, timeout: float | None = None) -> Iterator[tuple[int, Iterator[bytes]]]:
        """Status and the body's lines, as they come, over a connection of its own.

        ``timeout`` is the longest silence in seconds; None: any.
        """
        connection = self._open()
        try:
            try:
                answer = connection.ask(call, self._headers(call), self._timeout)
            except (OSError, h11.RemoteProtocolError) as error:
                raise lost(call, self.address, error) from error
            connection.wait(timeout)
            yield answer.status, self._lines(answer, call)
        finally:
            connection.close()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _open(self) -> _Connection:
        try:
            return _Connection(self.address, self._timeout)
        except OSError as error:
            raise unreachable(self.address, error) from error

    def _headers(self, call: Call[object]) -> dict[str, str]:
        return {"Host": self.address.netloc, **call.headers, **self.address.headers}

    def _lines(self, answer: _Answer, call: Call[object]) -> Iterator[bytes]:
        try:
            yield from answer.lines()
        except (OSError, h11.RemoteProtocolError) as error:
            raise lost(call, self.address, error) from error

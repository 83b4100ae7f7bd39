"""Where xend is, and HTTP to it by the standard library: a unix socket, or TCP with a token."""

from __future__ import annotations

import contextlib
import http.client
import os
import select
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pyxen.client._calls import Call
from pyxen.errors import InvalidRequest, OutcomeUnknown, PyxenError, Unavailable
from pyxen.paths import find_roots

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


class _Connection(http.client.HTTPConnection):
    """HTTP over what ``address`` names."""

    def __init__(self, address: Address, timeout: float | None) -> None:
        super().__init__(address.host, address.port or None, timeout=timeout)
        self._socket_path = address.socket

    def connect(self) -> None:
        if self._socket_path is None:
            super().connect()
            return
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self.sock.settimeout(self.timeout)
            self.sock.connect(os.fspath(self._socket_path))
        except OSError:
            self.close()
            raise

    @property
    def stale(self) -> bool:
        """Connected once, but the other side has hung up since (or said what nobody asked for)."""
        if self.sock is None:
            return False
        readable, _, _ = select.select([self.sock], [], [], 0)
        return bool(readable)


class Transport:
    """Requests to one xend, one at a time, over a connection that is kept."""

    def __init__(self, address: Address, *, timeout: float | None = DEFAULT_TIMEOUT_S) -> None:
        self.address = address
        self._timeout = timeout
        self._connection: _Connection | None = None

    def request(self, call: Call[object]) -> tuple[int, bytes]:
        """Status and body. Raises Unavailable if nothing was sent, OutcomeUnknown if an order's answer was lost."""
        connection = self._connected()
        if connection.sock is not None:
            connection.sock.settimeout(None if call.slow else self._timeout)
        response = self._send(connection, call)
        try:
            body = response.read()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise lost(call, self.address, error) from error
        if response.will_close:
            self.close()
        return response.status, body

    @contextlib.contextmanager
    def stream(self, call: Call[object], *, timeout: float | None = None) -> Iterator[tuple[int, Iterator[bytes]]]:
        """Status and the body's lines, as they come, over a connection of its own.

        ``timeout`` is the longest silence in seconds; None: any.
        """
        connection = _Connection(self.address, self._timeout)
        try:
            self._open(connection)
            response = self._send(connection, call)
            # http.client lets go of the socket when the answer will be the last one.
            if connection.sock is not None:
                connection.sock.settimeout(timeout)
            yield response.status, self._lines(response, call)
        finally:
            connection.close()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connected(self) -> _Connection:
        if self._connection is not None and self._connection.stale:
            self.close()
        if self._connection is None:
            connection = _Connection(self.address, self._timeout)
            self._open(connection)
            self._connection = connection
        return self._connection

    def _open(self, connection: _Connection) -> None:
        try:
            connection.connect()
        except OSError as error:
            raise unreachable(self.address, error) from error

    def _send(self, connection: _Connection, call: Call[object]) -> http.client.HTTPResponse:
        headers = {"Host": self.address.netloc, **call.headers, **self.address.headers}
        try:
            connection.request(call.method, call.target, call.body, headers)
            return connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            if connection is self._connection:
                self.close()
            raise lost(call, self.address, error) from error

    def _lines(self, response: http.client.HTTPResponse, call: Call[object]) -> Iterator[bytes]:
        try:
            while line := response.readline():
                yield line
        except (OSError, http.client.HTTPException) as error:
            raise lost(call, self.address, error) from error

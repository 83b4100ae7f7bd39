"""A domain's console as a stream of bytes, over a WebSocket, that survives a restart of xend."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

import msgspec

from pyxen import api
from pyxen.client import _calls
from pyxen.client.sync import Client
from pyxen.client.transport import Address, unreachable
from pyxen.errors import Conflict, NotFound, PyxenError, Unavailable

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

_RECONNECT_S = 15.0
_TYPE_CHUNK = 4096
# A replay may come as one message. Compression costs more than a local socket gains.
_OPTIONS: dict[str, Any] = {"compression": None, "max_size": None, "proxy": None, "close_timeout": 1.0}


class Console:
    """Output by iterating, input by ``write``; the two may be used from two threads.

    Made by :meth:`Client.console`; the connection is there when the constructor returns. Output starts with a replay
    of the last 64 KiB. When xend goes away, both wait up to 15 s for it to come back and go on exactly where they
    were; then Unavailable is raised. The iteration ends with the domain, ``ended`` then says why, or with ``close``.
    """

    def __init__(self, address: Address, ref: str, *, wait: bool = False) -> None:
        """``wait``: go on with the domain's next life when it restarts, instead of ending."""
        self._address = address
        self._wait = wait
        self._client = Client(address, timeout=10.0)
        self._closed = False
        self._offset: int | None = None
        self._socket: ClientConnection | None = None
        self._ready = threading.Condition()
        self.ended: str | None = None
        """Why the domain is gone: a ShutdownReason."""
        try:
            self.domain = self._running(ref)
            """The domain as it was when the console was connected."""
            self._connect()
        except BaseException:
            self._client.close()
            raise

    def __enter__(self) -> Console:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __iter__(self) -> Iterator[bytes]:
        """What the guest prints, without gaps or repetition."""
        from websockets.exceptions import ConnectionClosed

        while not self._closed:
            socket = self._socket
            try:
                if socket is None:
                    raise Unavailable(f"xend is not running (no answer on {self._address})")
                message = socket.recv()
            except ConnectionClosed:
                if self.ended is not None or self._closed:
                    return
                if not self._reconnect():
                    return
                continue
            if isinstance(message, bytes):
                self._offset = (self._offset or 0) + len(message)
                yield message
            else:
                self._control(message)

    def write(self, data: bytes) -> None:
        """Type ``data`` into the guest. Waits while xend is away; does nothing once the domain has ended."""
        from websockets.exceptions import ConnectionClosed

        for start in range(0, len(data), _TYPE_CHUNK):
            chunk = data[start : start + _TYPE_CHUNK]
            deadline = time.monotonic() + _RECONNECT_S
            while not self._closed and self.ended is None:
                with self._ready:
                    socket = self._socket
                    if socket is None:
                        if time.monotonic() >= deadline:
                            raise Unavailable("xend has gone away; the input was not sent")
                        self._ready.wait(0.1)
                        continue
                try:
                    socket.send(chunk)
                    break
                except ConnectionClosed:
                    # The reader notices too, and connects again.
                    time.sleep(0.02)
                    if time.monotonic() >= deadline:
                        raise Unavailable("xend has gone away; the input was not sent") from None

    def close(self) -> None:
        """Leave; the domain runs on. The iteration ends. May be called from another thread."""
        self._closed = True
        with self._ready:
            socket, self._socket = self._socket, None
            self._ready.notify_all()
        if socket is not None:
            socket.close()
        self._client.close()

    def _running(self, ref: str) -> api.Domain:
        domain = self._client.domain(ref)
        if domain.domid == 0:
            raise Conflict("Domain-0 is this machine: it has no console here")
        if domain.domid is None and not self._wait:
            raise Conflict(f"Domain '{domain.name}' is not started", hint=f"Start it with: xm start {domain.name}")
        return domain

    def _control(self, text: str) -> None:
        try:
            said = msgspec.json.decode(text, type=dict)
        except msgspec.DecodeError:
            return
        if "offset" in said:
            self._offset = int(said["offset"])
        if said.get("event") == "ended":
            self.ended = str(said.get("reason") or "")
        elif said.get("event") == "restarted":
            self.domain.domid = said.get("domid")

    def _reconnect(self) -> bool:
        """Wait for xend to come back; False if the domain has ended meanwhile. Raises Unavailable."""
        with self._ready:
            self._socket = None
        deadline = time.monotonic() + _RECONNECT_S
        pause = 0.05
        while not self._closed:
            # Before the first look as well: a xend that is stopping still takes connections, and drops them.
            time.sleep(pause)
            pause = min(pause * 2, 0.5)
            try:
                if not self._still_there():
                    return False
                self._connect()
                return True
            except (Conflict, NotFound):
                # It is being restarted, or has just ended: the next look will tell.
                if time.monotonic() >= deadline:
                    raise
            except Unavailable:
                if time.monotonic() >= deadline:
                    raise
        return False

    def _still_there(self) -> bool:
        """Is it still the same life of the domain? Sets ``ended`` if not, or starts at its next life's beginning."""
        try:
            now = self._client.domain(self.domain.uuid)
        except NotFound:
            self.ended = ""
            return False
        if now.domid == self.domain.domid:
            return True
        if self._wait:
            self.domain, self._offset = now, 0
            return True
        self.ended = str(now.shutdown_reason or "")
        return False

    def _connect(self) -> None:
        from websockets.exceptions import InvalidStatus, WebSocketException
        from websockets.sync.client import connect, unix_connect

        target = _calls.console_target(self.domain.uuid, after=self._offset, wait=self._wait)
        uri = f"ws://{self._address.netloc}{target}"
        try:
            if self._address.socket is not None:
                made = unix_connect(str(self._address.socket), uri, legacy=True, **_OPTIONS)
            else:
                made = connect(uri, legacy=True, additional_headers=self._address.headers, **_OPTIONS)
        except InvalidStatus as refused:
            raise self._refused(refused.response.status_code, refused.response.body) from refused
        except (WebSocketException, EOFError) as error:
            raise Unavailable(f"xend has hung up ({self._address}): {error}") from error
        except OSError as error:
            raise unreachable(self._address, error) from error
        with self._ready:
            self._socket = made
            self._ready.notify_all()
        if self._closed:
            self.close()

    def _refused(self, status: int, body: bytes | bytearray | None) -> PyxenError:
        if body:
            return _calls.problem(status, bytes(body), ref=self.domain.uuid)
        return Conflict(f"xend refuses the console of domain '{self.domain.name}' (HTTP status {status})")

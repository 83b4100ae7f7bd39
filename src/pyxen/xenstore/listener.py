"""xenstore on a unix socket, for domain 0's programs: they speak the same protocol as a guest does on its ring.

Made for a loop around ``selectors``: each registered key's ``data`` is a callable that takes the mask of events.
"""

from __future__ import annotations

import selectors
import socket
from collections.abc import Callable
from pathlib import Path

from pyxen.xenstore.connection import Connection
from pyxen.xenstore.errors import ProtocolError
from pyxen.xenstore.store import Store

_AT_ONCE = 16384
Handler = Callable[[int], None]


class Listener:
    """Accepts programs of domain 0 at ``path``, which only this user can reach."""

    def __init__(self, path: Path, store: Store, selector: selectors.BaseSelector) -> None:
        self._path = path
        self._store = store
        self._selector = selector
        self._clients: set[Client] = set()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.setblocking(False)
            path.unlink(missing_ok=True)
            self._socket.bind(str(path))
            path.chmod(0o600)
            self._socket.listen(16)
        except BaseException:
            self._socket.close()
            raise
        selector.register(self._socket, selectors.EVENT_READ, self._accept)

    def flush(self) -> None:
        """Send what other parties' changes have queued. To be called at the end of each round of the loop."""
        for client in list(self._clients):
            client.flush()

    def close(self) -> None:
        """End all connections, remove the socket."""
        self._selector.unregister(self._socket)
        self._socket.close()
        self._path.unlink(missing_ok=True)
        for client in list(self._clients):
            client.close()

    def _accept(self, mask: int) -> None:
        try:
            accepted, _ = self._socket.accept()
        except OSError:  # it has gone again, or we are out of descriptors: the next round tries anew
            return
        accepted.setblocking(False)
        self._clients.add(Client(accepted, self._store, self._selector, self._clients.discard))


class Client:
    """One accepted connection."""

    def __init__(
        self,
        accepted: socket.socket,
        store: Store,
        selector: selectors.BaseSelector,
        gone: Callable[[Client], None],
    ) -> None:
        self._socket = accepted
        self._connection = Connection(store, 0)
        self._selector = selector
        self._gone = gone
        self._mask = selectors.EVENT_READ
        selector.register(accepted, self._mask, self._ready)

    def flush(self) -> None:
        """Send what can be sent without waiting, and ask to be called for the rest."""
        if self._socket.fileno() < 0:
            return
        try:
            while output := self._connection.output:
                with memoryview(output) as view:
                    sent = self._socket.send(view[:_AT_ONCE])
                del output[:sent]
                # What waited for room among the requests can be answered now.
                self._connection.receive(b"")
        except BlockingIOError:
            pass
        except (OSError, ProtocolError):
            self.close()
            return
        self._listen_for(
            (0 if self._connection.congested else selectors.EVENT_READ)
            | (selectors.EVENT_WRITE if self._connection.output else 0)
        )

    def close(self) -> None:
        """End the connection with its watches and transactions."""
        if self._socket.fileno() < 0:
            return
        self._connection.reset()
        self._selector.unregister(self._socket)
        self._socket.close()
        self._gone(self)

    def _ready(self, mask: int) -> None:
        if mask & selectors.EVENT_READ:
            try:
                data = self._socket.recv(_AT_ONCE)
                if not data:
                    self.close()
                    return
                self._connection.receive(data)
            except BlockingIOError:
                pass
            except (OSError, ProtocolError):
                self.close()
                return
        self.flush()

    def _listen_for(self, mask: int) -> None:
        if mask != self._mask:
            self._mask = mask
            self._selector.modify(self._socket, mask, self._ready)

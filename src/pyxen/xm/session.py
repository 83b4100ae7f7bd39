"""What a command gets handed: the way to xend."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyxen.client import Client


class Session:
    """One run of xm. ``client`` is made when a command first asks for it."""

    def __init__(self, client: Client | None = None) -> None:
        self._client = client
        self.debug = False
        """Show tracebacks."""

    @property
    def client(self) -> Client:
        if self._client is None:
            from pyxen.client import Client

            self._client = Client()
        return self._client

    def close(self) -> None:
        if self._client is not None:
            self._client.close()

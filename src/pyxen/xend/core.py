"""What xend's HTTP side needs of xend's inside: one Protocol, so that either can be read and tested alone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Protocol

from pyxen import api

if TYPE_CHECKING:
    from pyxen.xend.console import Console
    from pyxen.xend.events import Events


class Core(Protocol):
    """xend's domains. ``ref`` is a name, an id or a UUID; an unknown one raises NotFound."""

    @property
    def events(self) -> Events: ...

    def list(self) -> list[api.Domain]:
        """Domain-0 first, then by name."""
        ...

    def get(self, ref: str) -> api.Domain: ...

    def vcpus(self, ref: str) -> api.VcpuList: ...

    async def create(self, request: api.CreateRequest) -> api.Domain: ...

    async def start(self, ref: str, *, paused: bool) -> api.Domain: ...

    async def shutdown(self, ref: str, reason: str) -> api.Domain: ...

    async def destroy(self, ref: str) -> api.Domain: ...

    async def pause(self, ref: str) -> api.Domain: ...

    async def unpause(self, ref: str) -> api.Domain: ...

    async def rename(self, ref: str, name: str) -> api.Domain: ...

    async def delete(self, ref: str) -> None: ...

    async def built(self, ref: str) -> None:
        """Return when the domain is not, or no longer, being built (at its start or restart)."""
        ...

    def console(self, ref: str) -> Console:
        """Raises Conflict if the domain is not running."""
        ...

    def host(self) -> api.Host: ...

    def dmesg(self) -> str: ...

    def images(self) -> api.ImageList:
        """May touch the disk: call it in a thread."""
        ...

    async def build_image(self, name: str, request: api.BuildRequest) -> AsyncIterator[api.Progress]:
        """Refuses what can't be built when awaited, then says how the building goes; closing the iterator ends it."""
        ...

    async def remove_image(self, name: str) -> None: ...

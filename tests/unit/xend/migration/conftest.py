"""Two xends in one process, each on a root of its own, that trust each other and talk over loopback."""

from __future__ import annotations

import asyncio
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pyxen.paths import Roots
from tests.unit.xend.conftest import Xend, start_xend


class Side:
    """A host: its root stays while its xend comes and goes."""

    def __init__(self, folder: Path) -> None:
        self.roots = Roots(state=folder / "state", run=folder / "run")
        self.port = 0
        self.xend: Xend
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self.xend = await start_xend(self.roots)
        listener = socket.create_server(("127.0.0.1", self.port))
        listener.setblocking(False)
        self.port = listener.getsockname()[1]
        self._serving = asyncio.create_task(self._serve(listener))

    async def _serve(self, listener: socket.socket) -> None:
        with listener:
            await self.xend.domains.migration.incoming.serve(listener)

    async def stop(self) -> None:
        await self.deaf()
        await self.xend.end()

    async def deaf(self) -> None:
        """Answer no more connections."""
        if self._serving is not None:
            self._serving.cancel()
            await asyncio.gather(self._serving, return_exceptions=True)
            self._serving = None

    def runs(self, name: str = "web") -> bool:
        """Does a guest of this name run here now? One that is paused doesn't."""
        record = self.xend.life.registry.named(name)
        live = self.xend.life.registry.live.get(record.uuid) if record else None
        return live is not None and live.process.stopped is None and not live.process.paused

    def knows(self, name: str = "web") -> bool:
        return self.xend.life.registry.named(name) is not None


@pytest.fixture
async def pair() -> AsyncIterator[tuple[Side, Side]]:
    folder = Path(tempfile.mkdtemp(prefix="pyxen-unit-"))
    folder.chmod(0o711)
    sides = Side(folder / "a"), Side(folder / "b")
    for side in sides:
        await side.start()
    for one, other in (sides, sides[::-1]):
        peers = one.xend.domains.migration.peers
        peers.add("other", other.xend.domains.migration.peers.own())
    yield sides
    for side in sides:
        await side.stop()
    shutil.rmtree(folder)

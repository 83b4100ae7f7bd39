"""The application on real sockets, served by uvicorn the way xend's daemon does it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp


class _Server(uvicorn.Server):
    """Leaves signals to pytest."""

    @asynccontextmanager
    async def running(self, sockets: list[socket.socket]) -> AsyncIterator[None]:
        self.config.load()
        self.lifespan = self.config.lifespan_class(self.config)
        await self.startup(sockets)
        ticking = asyncio.create_task(self.main_loop())
        try:
            yield
        finally:
            self.should_exit = True
            await ticking
            await self.shutdown(sockets)


@dataclass(frozen=True, slots=True)
class Address:
    """Where the server listens: both lead to the same application."""

    unix: Path
    port: int


@asynccontextmanager
async def serving(app: ASGIApp, folder: Path) -> AsyncIterator[Address]:
    """uvicorn on a unix socket in ``folder`` and on a free loopback port."""
    unix = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    unix.bind(str(folder / "xend.sock"))
    tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    tcp.bind(("127.0.0.1", 0))
    for each in (unix, tcp):
        each.listen(16)
        each.setblocking(False)
    address = Address(folder / "xend.sock", tcp.getsockname()[1])
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=2,
        ws="websockets-sansio",
        ws_per_message_deflate=False,
    )
    async with _Server(config).running([unix, tcp]):
        yield address

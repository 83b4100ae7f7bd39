"""A stand-in for xend with one domain and its console, as pyxen.api describes them."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from pathlib import Path
from types import TracebackType

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from pyxen.api import Domain, PowerState

from .stub import WEB, problem


class ConsoleStub:
    """``output`` is all that the guest has printed; it survives ``stop`` and ``start``, which are xend's."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.output = bytearray()
        self.typed = bytearray()
        self.ended: str | None = None
        self.ends_after: bytes | None = None
        """The domain powers off by itself once all of this has been printed."""
        self.domain: Domain | None = msgspec.structs.replace(WEB)
        self.attached = 0
        self.orders: list[str] = []
        self.on_typed: dict[bytes, bytes] = {}
        """What the guest prints once something has been typed."""

    def __enter__(self) -> ConsoleStub:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        app = Starlette(
            routes=[
                Route("/v1/domains", self._order, methods=["POST"]),
                Route("/v1/domains/{domain}", self._get),
                Route("/v1/domains/{domain}/{order}", self._order, methods=["POST"]),
                WebSocketRoute("/v1/domains/{domain}/console", self._console),
            ]
        )
        config = uvicorn.Config(
            app,
            uds=str(self.path),
            log_config=None,
            lifespan="off",
            ws="websockets-sansio",
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._stopping = False
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        wait_until(lambda: self._server.started)

    def stop(self) -> None:
        self._stopping = True
        self._server.should_exit = True
        self._thread.join(30)
        self.path.unlink(missing_ok=True)

    def print(self, data: bytes) -> None:
        self.output += data
        if self.ends_after is not None and self.output.endswith(self.ends_after):
            self.ended = "poweroff"

    def end(self, reason: str) -> None:
        """The domain goes away; xend forgets it."""
        self.ended, self.domain = reason, None

    def _body(self) -> Response:
        if self.domain is None:
            status, body = problem(404, "not-found", "Domain 'web' does not exist")
            return Response(body, status)
        return Response(msgspec.json.encode(self.domain))

    async def _get(self, request: Request) -> Response:
        return self._body()

    async def _order(self, request: Request) -> Response:
        body = await request.body()
        order = request.path_params.get("order", "create")
        paused = bool(body) and bool(json.loads(body).get("paused"))
        self.orders.append(f"{order} paused" if paused else order)
        if order == "unpause":
            self.print(b"booted\r\n")
        return self._body()

    async def _console(self, socket: WebSocket) -> None:
        if self.domain is None or self.domain.power_state is PowerState.HALTED:
            status, body = problem(409, "conflict", "Domain 'web' is not running")
            await socket.send_denial_response(Response(body, status))
            return
        offset = int(socket.query_params.get("after", max(0, len(self.output) - 65536)))
        await socket.accept()
        self.attached += 1
        await socket.send_json({"offset": offset})
        reader = asyncio.create_task(self._read(socket))
        try:
            while not self._stopping:
                if offset < len(self.output):
                    data = bytes(self.output[offset : offset + 1000])
                    await socket.send_bytes(data)
                    offset += len(data)
                elif self.ended is not None:
                    await socket.send_json({"event": "ended", "reason": self.ended})
                    await socket.close(1000)
                    return
                elif reader.done():
                    return
                else:
                    await asyncio.sleep(0.005)
            await socket.close(1012)
        finally:
            reader.cancel()

    async def _read(self, socket: WebSocket) -> None:
        while (message := await socket.receive())["type"] == "websocket.receive":
            self.typed += message["bytes"]
            for typed, answer in list(self.on_typed.items()):
                if typed in self.typed:
                    del self.on_typed[typed]
                    self.print(answer)


def wait_until(condition: object, seconds: float = 30.0) -> None:
    """Wait for what other threads do."""
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.005)

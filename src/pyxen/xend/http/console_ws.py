"""A console over a WebSocket, as :mod:`pyxen.api` describes it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from http import HTTPStatus

import msgspec
from starlette.websockets import WebSocket, WebSocketDisconnect

from pyxen import api
from pyxen.errors import Conflict, NotFound, PyxenError
from pyxen.xend.console import Console
from pyxen.xend.core import Core
from pyxen.xend.http.operation import MAX_REF_CHARS, Call, query_number
from pyxen.xend.http.problems import HttpProblem

MAX_INPUT_BYTES = 64 * 1024
_NORMAL, _UNSUPPORTED, _TOO_BIG = 1000, 1003, 1009  # RFC 6455, section 7.4.1
_Closing = tuple[int, str]


async def needs_websocket(call: Call) -> None:
    """The answer to a plain GET."""
    call.core.get(call.ref("domain"))
    call.number("after")
    call.number("wait")
    raise HttpProblem(
        HTTPStatus.UPGRADE_REQUIRED,
        "a console is a WebSocket",
        hint="Try: xm console DOMAIN",
        headers={"Upgrade": "websocket"},
    )


class ConsoleSocket:
    """The ASGI application behind ``/v1/domains/{domain}/console``."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def serve(self, socket: WebSocket) -> None:
        """Refuses (before the handshake) what has no console; then copies both ways until one side has gone."""
        ref: str = socket.path_params["domain"]
        if len(ref) > MAX_REF_CHARS:
            raise NotFound(f"Domain '{ref[:40]}…' does not exist")
        offset = query_number(socket, "after")
        wait = bool(query_number(socket, "wait"))
        uuid = self._core.get(ref).uuid
        await self._core.built(ref)
        console = self._core.console(ref)
        await socket.accept()
        session = _Session(self._core, socket, uuid, console, wait=wait)
        output = asyncio.create_task(session.copy_output(offset))
        typed = asyncio.create_task(session.copy_input())
        try:
            done, _ = await asyncio.wait((output, typed), return_when=asyncio.FIRST_COMPLETED)
        finally:
            output.cancel()
            typed.cancel()
            await asyncio.wait((output, typed))
        with contextlib.suppress(WebSocketDisconnect, OSError):
            closing = (output if output in done else typed).result()
            if closing is not None:
                await socket.close(*closing)


class _Session:
    """One connected client; ``console`` changes when the domain is restarted."""

    def __init__(self, core: Core, socket: WebSocket, uuid: str, console: Console, *, wait: bool) -> None:
        self._core = core
        self._socket = socket
        self._uuid = uuid
        self._console = console
        self._wait = wait

    async def copy_output(self, after: int | None) -> _Closing | None:
        """Until the domain has gone for good; returns how to close."""
        reason = await self._show(after)
        while self._wait and (domid := await self._restarted()) is not None:
            await self._tell({"event": "restarted", "domid": domid, "offset": self._console.start})
            reason = await self._show(self._console.start, announce=False)
        await self._tell({"event": "ended", "reason": reason})
        return _NORMAL, ""

    async def copy_input(self) -> _Closing | None:
        """Until the client leaves (None) or breaks the rules; returns how to close."""
        while (message := await self._socket.receive())["type"] == "websocket.receive":
            data = message.get("bytes")
            if data is None:
                return _UNSUPPORTED, "what is typed must come in binary messages"
            if len(data) > MAX_INPUT_BYTES:
                return _TOO_BIG, f"at most {MAX_INPUT_BYTES} bytes at a time"
            try:
                await self._console.write(data)
            except PyxenError as error:
                # Whether the domain has ended is for the output's side to say.
                await self._tell({"event": "input-refused", "reason": str(error)})
        return None

    async def _show(self, after: int | None, *, announce: bool = True) -> str:
        """Send a console's output until it is closed; returns why. An offset precedes it, and follows each gap."""
        view = self._console.attach(after)
        try:
            expected = view.offset
            if announce:
                await self._tell({"offset": expected})
            async for offset, data in view:
                if offset != expected:
                    await self._tell({"offset": offset})
                await self._socket.send_bytes(data)
                expected = offset + len(data)
            return view.reason or ""
        finally:
            view.close()

    async def _restarted(self) -> int | None:
        """Wait until the domain runs again (its new id) or surely won't (None)."""
        events = self._core.events.subscribe()
        async with _closing(events):
            while True:
                with contextlib.suppress(Conflict, NotFound):
                    console = self._core.console(self._uuid)
                    if console is not self._console and console.reason is None:
                        self._console = console
                        return self._core.get(self._uuid).domid
                if not self._may_come_back():
                    return None
                if await anext(events, None) is None:
                    return None

    def _may_come_back(self) -> bool:
        try:
            return self._core.get(self._uuid).power_state is not api.PowerState.HALTED
        except NotFound:
            return False

    async def _tell(self, message: dict[str, object]) -> None:
        await self._socket.send_text(msgspec.json.encode(message).decode())


@contextlib.asynccontextmanager
async def _closing(events: AsyncIterator[api.Event]) -> AsyncIterator[None]:
    try:
        yield
    finally:
        close = getattr(events, "aclose", None)
        if close is not None:
            await close()

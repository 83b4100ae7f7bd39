"""A command in a guest, or a file of it, over a WebSocket, as :mod:`pyxen.api` describes it."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from http import HTTPStatus

import msgspec
from starlette.types import Message
from starlette.websockets import WebSocket, WebSocketDisconnect

from pyxen import agent_api
from pyxen.errors import InvalidRequest, NotFound, PyxenError
from pyxen.xend.agent import ended, explain, started
from pyxen.xend.agent_link import Command, Refused
from pyxen.xend.core import Core
from pyxen.xend.http.operation import MAX_REF_CHARS, Call
from pyxen.xend.http.problems import HttpProblem, describe

_NORMAL = 1000  # RFC 6455, section 7.4.1
_MOST_KEPT, _COST_EACH = 1 << 20, 256
_REQUEST: msgspec.json.Decoder[agent_api.AgentRequest] = msgspec.json.Decoder(agent_api.AgentRequest)


async def needs_websocket(call: Call) -> None:
    """The answer to a plain GET."""
    call.core.get(call.ref("domain"))
    raise HttpProblem(
        HTTPStatus.UPGRADE_REQUIRED,
        "the agent is spoken to over a WebSocket",
        hint="Try: xm exec DOMAIN -- COMMAND",
        headers={"Upgrade": "websocket"},
    )


class AgentSocket:
    """The ASGI application behind ``/v1/domains/{domain}/agent``."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def serve(self, socket: WebSocket) -> None:
        """One request, up to its end or the client's."""
        ref: str = socket.path_params["domain"]
        await socket.accept()
        with contextlib.suppress(WebSocketDisconnect, OSError):
            try:
                await self._carry_out(socket, ref)
            except PyxenError as error:
                await _tell(socket, agent_api.AgentEvent(error=describe(error)))
            await socket.close(_NORMAL)

    async def _carry_out(self, socket: WebSocket, ref: str) -> None:
        message = await socket.receive()
        if message["type"] != "websocket.receive":
            raise WebSocketDisconnect
        try:
            request = _REQUEST.decode(message.get("text") or "")
        except msgspec.DecodeError as error:
            raise InvalidRequest(f"the request can't be read: {error}") from None
        if len(ref) > MAX_REF_CHARS:
            raise NotFound(f"Domain '{ref[:40]}…' does not exist")
        await self._core.built(ref)
        typed = _Typed()
        listening = asyncio.create_task(typed.listen(socket))
        beginning = asyncio.create_task(self._core.agent.begin(ref, request))
        try:
            await asyncio.wait((beginning, listening), return_when=asyncio.FIRST_COMPLETED)
            if not beginning.done():
                raise WebSocketDisconnect
            command = beginning.result()
            await _tell(socket, agent_api.AgentEvent(started=started(request, command.started or bytes(16))))
            await _converse(socket, request, command, listening, typed)
        finally:
            for task in (listening, beginning):
                task.cancel()
            await asyncio.wait((listening, beginning))


class _Typed:
    """What the client has said and the command has not taken yet.

    Some of it is kept here, so that a client that counts ``taken`` never waits for this side to read: then it can read
    itself, and a command that waits for its output to be taken before it reads on is no deadlock.
    """

    def __init__(self) -> None:
        self._messages: deque[Message] = deque()
        self._kept = 0
        self._changed = asyncio.Event()

    async def listen(self, socket: WebSocket) -> None:
        """Until the client has gone."""
        while (message := await socket.receive())["type"] == "websocket.receive":
            self._messages.append(message)
            self._kept += _cost(message)
            self._changed.set()
            while self._kept > _MOST_KEPT:
                await self._wait()

    async def next(self) -> Message:
        while not self._messages:
            await self._wait()
        return self._messages[0]

    def taken(self) -> None:
        """What ``next`` has given is done with."""
        self._kept -= _cost(self._messages.popleft())
        self._changed.set()

    async def _wait(self) -> None:
        self._changed.clear()
        await self._changed.wait()


def _cost(message: Message) -> int:
    return _COST_EACH + len(message.get("bytes") or message.get("text") or "")


async def _converse(
    socket: WebSocket,
    request: agent_api.AgentRequest,
    command: Command,
    listening: asyncio.Task[None],
    typed: _Typed,
) -> None:
    output = asyncio.create_task(_copy_output(socket, request, command))
    typing = asyncio.create_task(_copy_input(socket, command, typed))
    try:
        await asyncio.wait((output, listening, typing), return_when=asyncio.FIRST_COMPLETED)
        if typing.done():  # it only ends with an error
            typing.result()
        if output.done():
            output.result()
    finally:
        for task in (output, typing):
            task.cancel()
        await asyncio.wait((output, typing))
        if not command.over:
            await command.abandon()


async def _copy_output(socket: WebSocket, request: agent_api.AgentRequest, command: Command) -> None:
    try:
        while (piece := await command.output()) is not None:
            stream, data = piece
            if data:
                await socket.send_bytes(bytes([stream]) + data)
    except Refused as refused:
        raise explain(request, refused.errno) from None
    await _tell(socket, agent_api.AgentEvent(ended=ended(command)))


async def _copy_input(socket: WebSocket, command: Command, typed: _Typed) -> None:
    while True:
        message = await typed.next()
        data = message.get("bytes")
        if data is not None:
            await command.write(data)
            typed.taken()
            with contextlib.suppress(WebSocketDisconnect, OSError):
                await _tell(socket, agent_api.AgentEvent(taken=1))
            continue
        typed.taken()
        try:
            said = msgspec.json.decode(message.get("text") or "", type=agent_api.AgentInput)
        except msgspec.DecodeError as error:
            raise InvalidRequest(f"a message can't be read: {error}") from None
        if said.signal is not None:
            await command.signal(said.signal)
        if said.rows is not None and said.columns is not None:
            await command.resize(said.rows, said.columns)
        if said.end:
            await command.end_input()


async def _tell(socket: WebSocket, event: agent_api.AgentEvent) -> None:
    await socket.send_text(msgspec.json.encode(event).decode())

"""A command in a guest, or a file of it, or a command with a guest of its own, over a WebSocket (:mod:`pyxen.api`)."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Coroutine
from http import HTTPStatus
from typing import Any, TypeVar

import msgspec
from starlette.types import Message
from starlette.websockets import WebSocket, WebSocketDisconnect

from pyxen import agent_api, run_api
from pyxen.errors import InvalidRequest, NotFound, PyxenError
from pyxen.xend.agent_contract import GuestCommand
from pyxen.xend.agent_link import Refused
from pyxen.xend.agent_words import ended, explain, started
from pyxen.xend.core import Core
from pyxen.xend.http.operation import MAX_REF_CHARS, Call
from pyxen.xend.http.problems import HttpProblem, describe

_NORMAL = 1000  # RFC 6455, section 7.4.1
_MOST_KEPT, _COST_EACH = 1 << 20, 256
_REQUEST: msgspec.json.Decoder[agent_api.AgentRequest] = msgspec.json.Decoder(agent_api.AgentRequest)
_RUN_REQUEST = msgspec.json.Decoder(run_api.RunRequest)
T = TypeVar("T")


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
                await tell(socket, agent_api.AgentEvent(error=describe(error)))
            await socket.close(_NORMAL)

    async def _carry_out(self, socket: WebSocket, ref: str) -> None:
        request = await receive(socket, _REQUEST)
        if len(ref) > MAX_REF_CHARS:
            raise NotFound(f"Domain '{ref[:40]}…' does not exist")
        await self._core.built(ref)
        async with Typing(socket) as typing:
            command = await typing.unless_gone(self._core.agent.begin(ref, request))
            await tell(socket, agent_api.AgentEvent(ended=await typing.converse(request, command)))


class RunSocket:
    """The ASGI application behind ``/v1/run``: a domain for one command."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def serve(self, socket: WebSocket) -> None:
        """One request, up to its end or the client's; the domain ends before either hears of it."""
        await socket.accept()
        with contextlib.suppress(WebSocketDisconnect, OSError):
            try:
                request = await receive(socket, _RUN_REQUEST)
                async with Typing(socket) as typing:
                    ended = await typing.unless_gone(self._run(socket, typing, request))
                    await tell(socket, agent_api.AgentEvent(ended=ended))
            except PyxenError as error:
                await tell(socket, agent_api.AgentEvent(error=describe(error)))
            await socket.close(_NORMAL)

    async def _run(self, socket: WebSocket, typing: Typing, request: run_api.RunRequest) -> agent_api.AgentEnded:
        async def say(step: str) -> None:
            await tell(socket, agent_api.AgentEvent(step=step))

        async with self._core.sandboxes.open(request, say) as sandbox:
            await tell(socket, agent_api.AgentEvent(running=sandbox.running))
            return await typing.converse(request.command, await sandbox.begin())


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


class Typing:
    """A client that has said what it wants, and now types, or goes away. A context."""

    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket
        self._typed = _Typed()
        self._listening = asyncio.create_task(self._typed.listen(socket))

    async def __aenter__(self) -> Typing:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listening.cancel()
        await asyncio.wait((self._listening,))

    async def unless_gone(self, step: Coroutine[Any, Any, T]) -> T:
        """What ``step`` returns. Raises WebSocketDisconnect when the client goes; the step is then called off."""
        task = asyncio.ensure_future(step)
        try:
            await asyncio.wait((task, self._listening), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise WebSocketDisconnect
            return task.result()
        finally:
            task.cancel()
            await asyncio.wait((task,))

    async def converse(self, request: agent_api.AgentRequest, command: GuestCommand) -> agent_api.AgentEnded:
        """Carry input and output of a command that has started; returns how it has ended."""
        await tell(self._socket, agent_api.AgentEvent(started=started(request, command.started or bytes(16))))
        output = asyncio.create_task(_copy_output(self._socket, request, command))
        typing = asyncio.create_task(_copy_input(self._socket, command, self._typed))
        try:
            await asyncio.wait((output, self._listening, typing), return_when=asyncio.FIRST_COMPLETED)
            if typing.done():  # it only ends with an error
                typing.result()
            if not output.done():
                raise WebSocketDisconnect
            output.result()
            return ended(command)
        finally:
            for task in (output, typing):
                task.cancel()
            await asyncio.wait((output, typing))
            if not command.over:
                await command.abandon()


async def _copy_output(socket: WebSocket, request: agent_api.AgentRequest, command: GuestCommand) -> None:
    try:
        while (piece := await command.output()) is not None:
            stream, data = piece
            if data:
                await socket.send_bytes(bytes([stream]) + data)
    except Refused as refused:
        raise explain("the guest", request, refused.errno) from None


async def _copy_input(socket: WebSocket, command: GuestCommand, typed: _Typed) -> None:
    while True:
        message = await typed.next()
        data = message.get("bytes")
        if data is not None:
            await command.write(data)
            typed.taken()
            with contextlib.suppress(WebSocketDisconnect, OSError):
                await tell(socket, agent_api.AgentEvent(taken=1))
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


async def receive(socket: WebSocket, decoder: msgspec.json.Decoder[T]) -> T:
    """A client's first message. Raises InvalidRequest."""
    message = await socket.receive()
    if message["type"] != "websocket.receive":
        raise WebSocketDisconnect
    try:
        return decoder.decode(message.get("text") or "")
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"the request can't be read: {error}") from None


async def tell(socket: WebSocket, event: agent_api.AgentEvent) -> None:
    await socket.send_text(msgspec.json.encode(event).decode())

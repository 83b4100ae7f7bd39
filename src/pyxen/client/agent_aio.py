"""A command in a guest, or a file of it, carried out to its end; the asynchronous way of :mod:`pyxen.client.agent`."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from websockets.asyncio.client import connect, unix_connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from pyxen import agent_api, run_api
from pyxen.client import _calls
from pyxen.client.agent import CHUNK, OPTIONS, refusal
from pyxen.client.transport import Address, unreachable
from pyxen.errors import Unavailable


async def carry_out(
    address: Address, ref: str | None, request: agent_api.AgentRequest | run_api.RunRequest, data: bytes
) -> agent_api.ExecResult:
    """Give it all of its input while its output is collected."""
    uri = f"ws://{address.netloc}{_calls.agent_target(ref)}"
    try:
        if address.socket is not None:
            socket = await unix_connect(str(address.socket), uri, **OPTIONS)
        else:
            socket = await connect(uri, additional_headers=address.headers, **OPTIONS)
    except InvalidStatus as refused:
        raise refusal(refused, ref) from refused
    except (WebSocketException, EOFError) as error:
        raise Unavailable(f"xend has hung up ({address}): {error}") from error
    except OSError as error:
        raise unreachable(address, error) from error
    async with socket:
        try:
            await socket.send(msgspec.json.encode(request).decode())
            feeding = asyncio.create_task(_feed(socket, data))
            try:
                return await _collect(socket, ref)
            finally:
                feeding.cancel()
                await asyncio.wait([feeding])
        except ConnectionClosed as error:
            raise Unavailable("the connection to xend was lost; the command has been hung up on") from error


async def _feed(socket: Any, data: bytes) -> None:
    for start in range(0, len(data), CHUNK):
        await socket.send(data[start : start + CHUNK])
    await socket.send(msgspec.json.encode(agent_api.AgentInput(end=True)).decode())


async def _collect(socket: Any, ref: str | None) -> agent_api.ExecResult:
    output: dict[int, list[bytes]] = {1: [], 2: []}
    while True:
        message = await socket.recv()
        if isinstance(message, bytes):
            output[message[0]].append(message[1:])
        elif (ended := _calls.agent_event(message, ref).ended) is not None:
            return agent_api.ExecResult(ended.status, b"".join(output[1]), b"".join(output[2]))

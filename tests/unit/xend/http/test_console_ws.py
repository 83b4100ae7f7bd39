"""Consoles and plain requests over real sockets: uvicorn on one side, websockets and httpx2 on the other."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.types import ASGIApp
from websockets.asyncio.client import ClientConnection, connect, unix_connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from pyxen import api
from tests.unit.xend.http.conftest import TOKEN
from tests.unit.xend.http.fake_core import FakeCore
from tests.unit.xend.http.server import Address, serving

pytestmark = pytest.mark.anyio


@pytest.fixture
async def address(app: ASGIApp, tmp_path: Path) -> AsyncIterator[Address]:
    async with serving(app, tmp_path) as address:
        yield address


@pytest.fixture
async def web(core: FakeCore, address: Address) -> tuple[api.Domain, Path]:
    domain = core.add("web")
    return domain, core.open_console(domain)


def console(address: Address, query: str = "", domain: str = "web") -> Any:
    return unix_connect(str(address.unix), uri=f"ws://xend/v1/domains/{domain}/console{query}", close_timeout=0.1)


def prints(folder: Path, data: bytes) -> None:
    with (folder / "console.log").open("ab") as file:
        file.write(data)


async def output(socket: ClientConnection, size: int) -> bytes:
    got = b""
    while len(got) < size:
        message = await socket.recv()
        assert isinstance(message, bytes), message
        got += message
    return got


async def told(socket: ClientConnection) -> dict[str, Any]:
    message = await socket.recv()
    assert isinstance(message, str), message
    found: dict[str, Any] = json.loads(message)
    return found


async def test_a_console_from_replay_to_the_end(address: Address, core: FakeCore, web: tuple[api.Domain, Path]) -> None:
    domain, folder = web
    prints(folder, b"boot\r\n")
    async with console(address) as socket:
        assert await told(socket) == {"offset": 0}
        assert await output(socket, 6) == b"boot\r\n"
        prints(folder, b"login: ")
        assert await output(socket, 7) == b"login: "
        await socket.send(b"root\n")
        while True:
            try:
                assert os.read(core.readers[0], 100) == b"root\n"
                break
            except BlockingIOError:
                await asyncio.sleep(0.001)
        prints(folder, b"bye")
        core.consoles[domain.uuid].close("poweroff")
        assert await output(socket, 3) == b"bye"
        assert await told(socket) == {"event": "ended", "reason": "poweroff"}
        with pytest.raises(ConnectionClosed):
            await socket.recv()
        assert socket.close_code == 1000


async def test_output_from_an_offset(address: Address, web: tuple[api.Domain, Path]) -> None:
    prints(web[1], b"x" * 100_000 + b"tail")
    async with console(address, "?after=99999") as socket:
        assert await told(socket) == {"offset": 99_999}
        assert await output(socket, 5) == b"xtail"
    async with console(address) as socket:
        assert await told(socket) == {"offset": 100_004 - 65_536}
        assert len(await output(socket, 65_536)) == 65_536


async def test_viewers_share_a_console(address: Address, core: FakeCore, web: tuple[api.Domain, Path]) -> None:
    async with console(address) as one, console(address, domain=web[0].uuid) as two:
        prints(web[1], b"to all")
        for socket in (one, two):
            await told(socket)
            assert await output(socket, 6) == b"to all"


async def test_a_viewer_that_leaves_is_forgotten(
    address: Address, core: FakeCore, web: tuple[api.Domain, Path]
) -> None:
    views = core.consoles[web[0].uuid]._views
    async with console(address) as socket:
        await told(socket)
        assert len(views) == 1
    while views:  # noqa: ASYNC110  (nothing else tells that the server has noticed)
        await asyncio.sleep(0.001)


async def test_a_viewer_that_reads_nothing_holds_up_nobody(
    address: Address, core: FakeCore, web: tuple[api.Domain, Path]
) -> None:
    async with console(address, "?after=0") as slow, console(address, "?after=0") as quick:
        await told(quick)
        for _ in range(64):
            prints(web[1], b"y" * 65_536)
            await output(quick, 65_536)
        assert min(view.offset for view in core.consoles[web[0].uuid]._views) < 64 * 65_536
        assert await told(slow) == {"offset": 0}


async def test_a_gap_is_announced(address: Address, core: FakeCore, web: tuple[api.Domain, Path]) -> None:
    console_ = core.consoles[web[0].uuid]
    async with console(address, "?after=0") as socket:
        await told(socket)
        prints(web[1], b"z" * 16 * 1024 * 1024)
        console_.trim()
        if console_.start == 0:
            pytest.skip("this file system has no holes")
        while isinstance(message := await socket.recv(), bytes):
            pass
        assert json.loads(message)["offset"] == console_.start


async def test_waiting_over_a_restart(address: Address, core: FakeCore, web: tuple[api.Domain, Path]) -> None:
    domain, _ = web
    async with console(address, "?wait=1") as socket:
        await told(socket)
        core.consoles.pop(domain.uuid).close("reboot")
        core.events.publish("domain-stopped", uuid=domain.uuid)
        domain.domid = 7
        prints(core.open_console(domain), b"again")
        core.events.publish("domain-restarted", uuid=domain.uuid)
        assert await told(socket) == {"event": "restarted", "domid": 7, "offset": 0}
        assert await output(socket, 5) == b"again"
        core.domains.clear()
        core.consoles.pop(domain.uuid).close("poweroff")
        assert await told(socket) == {"event": "ended", "reason": "poweroff"}


async def test_waiting_for_nothing(address: Address, core: FakeCore, web: tuple[api.Domain, Path]) -> None:
    domain, _ = web
    async with console(address, "?wait=1") as socket:
        await told(socket)
        core.consoles.pop(domain.uuid).close("crash")
        await asyncio.sleep(0.01)
        domain.power_state = api.PowerState.HALTED
        core.events.publish("domain-ended", uuid=domain.uuid)
        assert await told(socket) == {"event": "ended", "reason": "crash"}


async def test_text_is_not_typed(address: Address, web: tuple[api.Domain, Path]) -> None:
    async with console(address) as socket:
        await told(socket)
        await socket.send("root\n")
        with pytest.raises(ConnectionClosed):
            await socket.recv()
        assert socket.close_code == 1003


async def test_too_much_at_once(address: Address, web: tuple[api.Domain, Path]) -> None:
    async with console(address) as socket:
        await told(socket)
        await socket.send(b"x" * 65_537)
        with pytest.raises(ConnectionClosed):
            await socket.recv()
        assert socket.close_code == 1009


async def test_input_that_nobody_takes(address: Address, core: FakeCore, web: tuple[api.Domain, Path]) -> None:
    os.close(core.readers.pop())
    async with console(address) as socket:
        await told(socket)
        await socket.send(b"x")
        assert (await told(socket))["event"] == "input-refused"
        prints(web[1], b"still watching")
        assert await output(socket, 14) == b"still watching"


@pytest.mark.parametrize(
    ("domain", "query", "status"),
    [("nobody", "", 404), ("halted", "", 409), ("web", "?after=x", 400), ("Domain-0", "", 409), ("9" * 5000, "", 404)],
)
async def test_a_console_that_is_refused(
    address: Address, core: FakeCore, web: tuple[api.Domain, Path], domain: str, query: str, status: int
) -> None:
    core.add("halted")
    with pytest.raises(InvalidStatus) as refused:
        async with console(address, query, domain):
            pass
    assert refused.value.response.status_code == status
    assert json.loads(refused.value.response.body)["status"] == status


async def test_a_plain_get_is_told_what_it_takes(address: Address, web: tuple[api.Domain, Path]) -> None:
    async with httpx2.AsyncClient(transport=httpx2.AsyncHTTPTransport(uds=str(address.unix))) as client:
        response = await client.get("http://xend/v1/domains/web/console")
    assert (response.status_code, response.headers["upgrade"]) == (426, "websocket")


async def test_both_listeners_serve_and_only_one_asks_for_the_token(
    address: Address, web: tuple[api.Domain, Path]
) -> None:
    async with httpx2.AsyncClient(transport=httpx2.AsyncHTTPTransport(uds=str(address.unix))) as client:
        assert (await client.get("http://xend/v1/domains/web")).json()["name"] == "web"
    url = f"http://127.0.0.1:{address.port}/v1/domains/web"
    good = {"authorization": f"Bearer {TOKEN}"}
    async with httpx2.AsyncClient() as client:
        assert (await client.get(url)).status_code == 401
        assert (await client.get(url, headers=good)).json()["name"] == "web"
    uri = f"ws://localhost:{address.port}/v1/domains/web/console"
    with pytest.raises(InvalidStatus):
        async with connect(uri):
            pass
    async with connect(uri, additional_headers=good) as socket:
        assert await told(socket) == {"offset": 0}


async def test_a_stream_of_events_over_the_socket(address: Address, core: FakeCore) -> None:
    async with (
        httpx2.AsyncClient(transport=httpx2.AsyncHTTPTransport(uds=str(address.unix))) as client,
        client.stream("GET", "http://xend/v1/events") as response,
    ):
        lines = response.aiter_lines()
        assert (await anext(lines)).startswith(":")
        core.events.publish("domain-started", name="web")
        while not (line := await anext(lines)).startswith("data: "):
            pass
        assert json.loads(line.removeprefix("data: "))["kind"] == "domain-started"

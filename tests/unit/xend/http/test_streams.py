"""Responses that go on, driven as ASGI so that time and disconnection are the test's to say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest
from starlette.types import ASGIApp, Message

from pyxen import api
from pyxen.xend.events import Events
from pyxen.xend.http import streams
from pyxen.xend.http.streams import sse
from tests.unit.xend.http.conftest import over_unix
from tests.unit.xend.http.fake_core import FakeCore

pytestmark = pytest.mark.anyio


class Exchange:
    """One request whose response is read piece by piece."""

    def __init__(self) -> None:
        self.sent: asyncio.Queue[Message] = asyncio.Queue()
        self.gone = asyncio.Event()
        self._requested = False

    async def receive(self) -> Message:
        if not self._requested:
            self._requested = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        await self.sent.put(message)

    async def body(self) -> bytes:
        return bytes((await self.sent.get())["body"])


@asynccontextmanager
async def exchange(app: ASGIApp, method: str, path: str, **headers: str) -> AsyncIterator[tuple[Exchange, Any]]:
    """A request to the application, and the task that serves it."""
    one = Exchange()
    path, _, query = path.partition("?")
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": query.encode(),
        "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
    }
    serving: Coroutine[Any, Any, None] = over_unix(app)(scope, one.receive, one.send)  # type: ignore[assignment]
    task = asyncio.create_task(serving)
    try:
        start = await one.sent.get()
        assert start["status"] == 200
        yield one, task
    finally:
        one.gone.set()
        await task


def event_of(block: bytes) -> api.Event:
    identity, data, *_ = block.decode().split("\n")
    event = msgspec.json.decode(data.removeprefix("data: "), type=api.Event)
    assert identity == f"id: {event.sequence}"
    return event


async def test_events_come_as_they_happen(app: ASGIApp, core: FakeCore) -> None:
    core.events.publish("before")
    async with exchange(app, "GET", "/v1/events") as (one, task):
        assert (await one.body()).startswith(b":")
        core.events.publish("domain-started", domid=1, name="web", reason="zwei\nZeilen")
        event = event_of(await one.body())
        assert (event.kind, event.domid, event.reason) == ("domain-started", 1, "zwei\nZeilen")
        one.gone.set()
        await task


@pytest.mark.parametrize(
    ("path", "headers"),
    [("?after=1", {}), ("", {"last_event_id": "1"}), ("?after=0", {"last_event_id": "1"})],
)
async def test_events_are_replayed(app: ASGIApp, core: FakeCore, path: str, headers: dict[str, str]) -> None:
    for kind in ("one", "two", "three"):
        core.events.publish(kind)
    async with exchange(app, "GET", f"/v1/events{path}", **headers) as (one, _task):
        await one.body()
        assert [event_of(await one.body()).kind for _ in range(2)] == ["two", "three"]


async def test_a_quiet_stream_shows_that_it_lives() -> None:
    events = Events()
    stream = sse(events.subscribe(), heartbeat=0.01)
    assert [await anext(stream) for _ in range(3)] == [b": xend's events\n\n", *[b": still here\n\n"] * 2]
    events.publish("one")
    block = await anext(stream)
    while block.startswith(b":"):
        block = await anext(stream)
    assert event_of(block).kind == "one"
    events.close()
    with pytest.raises(StopAsyncIteration):
        while (await anext(stream)).startswith(b":"):
            pass


async def test_a_build_is_told_step_by_step(client: httpx2.AsyncClient) -> None:
    response = await client.post("/v1/images/tiny/build", json={})
    assert response.headers["content-type"] == "application/x-ndjson"
    steps = [msgspec.json.decode(line, type=api.Progress) for line in response.content.splitlines()]
    assert [(step.step, step.done) for step in steps] == [("unpack", False), ("done", True)]


async def test_a_build_that_fails_ends_with_the_problem(client: httpx2.AsyncClient) -> None:
    response = await client.post("/v1/images/broken/build")
    last = msgspec.json.decode(response.content.splitlines()[-1], type=api.Progress)
    assert last.done
    assert last.error is not None
    assert (last.error.detail, last.error.hint) == ("the kernel is missing", "Install one.")


async def test_what_cannot_be_built_is_refused_at_once(client: httpx2.AsyncClient) -> None:
    assert (await client.post("/v1/images/windows/build")).status_code == 404


async def test_leaving_ends_the_build(app: ASGIApp, core: FakeCore) -> None:
    async with exchange(app, "POST", "/v1/images/slow/build") as (one, task):
        assert b"unpack" in await one.body()
        assert core.building == 1
        one.gone.set()
        await task
        assert core.building == 0


async def test_a_log_is_followed_over_its_rotation(
    app: ASGIApp, core: FakeCore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "_ROTATION_S", 0.05)
    log = tmp_path / "xend.log"
    log.write_text("one\ntwo\nthree\n")
    async with exchange(app, "GET", "/v1/log/follow?tail=2") as (one, task):
        assert await one.body() == b"two\nthree\n"
        with log.open("a") as file:
            file.write("four\n")
        assert await one.body() == b"four\n"
        log.rename(tmp_path / "xend.log.1")
        with (tmp_path / "xend.log.1").open("a") as file:
            file.write("five\n")
        log.write_text("six\n")
        assert await one.body() + await one.body() == b"five\nsix\n"
        core.events.close()
        assert await one.body() == b""
        await task

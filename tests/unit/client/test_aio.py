from __future__ import annotations

import inspect
from pathlib import Path

import msgspec
import pytest

from pyxen import errors
from pyxen.api import DomainList, Event, Progress
from pyxen.client import Address, AsyncClient, Client, DomainNotFound

from .stub import WEB, Stub, chunks, hang_up, problem

pytestmark = pytest.mark.anyio


def test_it_has_the_calls_of_the_synchronous_one() -> None:
    public = {name for name, _ in inspect.getmembers(Client, inspect.isfunction) if not name.startswith("_")}
    ours = {name for name, _ in inspect.getmembers(AsyncClient, inspect.isfunction) if not name.startswith("_")}
    assert public - ours == {"command", "console", "patient", "sandbox"}
    for name in ours - {"close"}:
        theirs = inspect.signature(getattr(Client, name))
        assert inspect.signature(getattr(AsyncClient, name)).parameters == theirs.parameters


async def test_calls(stub: Stub) -> None:
    stub.answers = {"GET /v1/domains": DomainList([WEB]), "POST /v1/domains/web/start": WEB}
    async with AsyncClient(Address(socket=stub.path)) as client:
        assert await client.domains() == [WEB]
        assert await client.start("web") == WEB


async def test_errors(stub: Stub, tmp_path: Path) -> None:
    stub.answers = {
        "GET /v1/domains/x": problem(404, "not-found", "Domain 'x' does not exist"),
        "POST /v1/domains/x/start": hang_up,
        "GET /v1/host": hang_up,
    }
    async with AsyncClient(Address(socket=stub.path)) as client:
        with pytest.raises(DomainNotFound):
            await client.domain("x")
        with pytest.raises(errors.OutcomeUnknown):
            await client.start("x")
        with pytest.raises(errors.Unavailable):
            await client.host()
    async with AsyncClient(Address(socket=tmp_path / "nothing")) as client:
        with pytest.raises(errors.Unavailable, match="not running"):
            await client.host()


async def test_patience(stub: Stub) -> None:
    stub.answers["GET /v1/domains/web"] = [hang_up, WEB]
    async with AsyncClient(Address(socket=stub.path), patience_s=30) as client:
        assert await client.domain("web") == WEB


async def test_streams(stub: Stub) -> None:
    one, two = Event(1, 0.0, "domain-started"), Event(2, 0.0, "domain-stopped")
    steps = [Progress("a"), Progress("b", done=True)]
    stub.answers = {
        "GET /v1/events": chunks(b"data: %s\n\n" % msgspec.json.encode(one), end=False),
        "GET /v1/events?after=1": chunks(b": beat\n\ndata: %s\n\n" % msgspec.json.encode(two)),
        "POST /v1/images/tiny/build": chunks(*(msgspec.json.encode(step) + b"\n" for step in steps)),
        "POST /v1/images/x/build": problem(404, "not-found", "no image 'x'"),
    }
    async with AsyncClient(Address(socket=stub.path), patience_s=30) as client:
        events = client.events()
        assert [await anext(events), await anext(events)] == [one, two]
        await events.aclose()  # type: ignore[attr-defined]
        assert [step async for step in client.build_image("tiny")] == steps
        with pytest.raises(errors.NotFound, match="no image"):
            _ = [step async for step in client.build_image("x")]

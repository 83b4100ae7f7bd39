"""An application over a fake core, and clients of it that seem to come over the unix socket."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx2
import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from pyxen.xend.http.app import make_app
from tests.unit.xend.http.fake_core import FakeCore

TOKEN = "sesame"


def over_unix(app: ASGIApp) -> ASGIApp:
    """The scope as uvicorn makes it for a unix listener."""

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "server": ("/run/xend/xend.sock", None), "client": None}, receive, send)

    return wrapped


@pytest.fixture
def core(tmp_path: Path) -> Iterator[FakeCore]:
    folder = tmp_path / "domains"
    folder.mkdir()
    core = FakeCore(folder)
    yield core
    core.close()


@pytest.fixture
def app(core: FakeCore, tmp_path: Path) -> ASGIApp:
    return make_app(core, version="1.2.3", token=TOKEN, log_path=tmp_path / "xend.log")


@pytest.fixture
async def client(app: ASGIApp) -> AsyncIterator[httpx2.AsyncClient]:
    transport = httpx2.ASGITransport(over_unix(app), raise_app_exceptions=True)
    async with httpx2.AsyncClient(transport=transport, base_url="http://xend") as client:
        yield client


@pytest.fixture
async def tcp_client(app: ASGIApp) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://127.0.0.1:8000") as client:
        yield client

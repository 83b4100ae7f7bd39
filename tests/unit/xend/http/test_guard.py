"""Who is let in over TCP, and who is not."""

from __future__ import annotations

from pathlib import Path

import httpx2
import pytest

from pyxen.xend.http.app import make_app
from pyxen.xend.http.guard import is_loopback
from tests.unit.xend.http.conftest import TOKEN
from tests.unit.xend.http.fake_core import FakeCore

pytestmark = pytest.mark.anyio
GOOD = {"authorization": f"Bearer {TOKEN}"}


async def test_tcp_with_the_token(tcp_client: httpx2.AsyncClient) -> None:
    assert (await tcp_client.get("/v1/version", headers=GOOD)).json() == {"version": "1.2.3", "api": "v1"}


@pytest.mark.parametrize("value", [None, "", "Bearer", "Bearer ", "Bearer x", f"Basic {TOKEN}", TOKEN, "Bearer sésame"])
async def test_tcp_without_it(tcp_client: httpx2.AsyncClient, value: str | None) -> None:
    headers = {} if value is None else {"authorization": value.encode("latin-1")}
    for path in ("/v1/version", "/v1/openapi.json", "/nowhere"):
        response = await tcp_client.get(path, headers=headers)  # type: ignore[arg-type]
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.headers["content-type"] == "application/problem+json"


async def test_a_name_that_only_points_here(tcp_client: httpx2.AsyncClient) -> None:
    response = await tcp_client.get("/v1/version", headers={**GOOD, "host": "evil.example:8000"})
    assert response.status_code == 403


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:80", "127.0.0.1", "127.8.9.1:8000", "[::1]", "[::1]:8000"])
def test_loopback_names(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host",
    ["", "example.com", "127.0.0.1.example.com", "10.0.0.1", "[::2]:80", "localhost.example.com", "0.0.0.0", "[", "]"],
)
def test_other_names(host: str) -> None:
    assert not is_loopback(host)


async def test_no_token_means_no_tcp(core: FakeCore, tmp_path: Path) -> None:
    app = make_app(core, version="1", token=None, log_path=tmp_path / "xend.log")
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://127.0.0.1") as client:
        for value in ("Bearer ", "Bearer None"):
            assert (await client.get("/v1/version", headers={"authorization": value})).status_code == 401

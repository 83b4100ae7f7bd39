from __future__ import annotations

import json

import httpx2
import pytest

from tests.unit.xend.http.fake_core import FakeCore

pytestmark = pytest.mark.anyio


async def test_a_trace_is_lines_of_json(client: httpx2.AsyncClient, core: FakeCore) -> None:
    core.add("web")
    answer = await client.get("/v1/domains/web/trace?only=port&only=msr")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert [json.loads(line)["kind"] for line in answer.text.splitlines()] == ["port", "msr", "end"]


async def test_refusals(client: httpx2.AsyncClient, core: FakeCore) -> None:
    core.add("web")
    assert (await client.get("/v1/domains/nobody/trace")).status_code == 404
    answer = await client.get("/v1/domains/web/trace?only=x")
    assert answer.status_code == 400
    assert "hypercall" in answer.json()["hint"]

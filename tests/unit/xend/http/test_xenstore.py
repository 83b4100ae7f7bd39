from __future__ import annotations

import json

import httpx2
import pytest

from pyxen.xend.xenstore_map import Place
from tests.unit.xend.http.fake_core import FakeCore

pytestmark = pytest.mark.anyio


async def test_a_tree_and_a_node(client: httpx2.AsyncClient, core: FakeCore) -> None:
    core.places = [Place(3, "u", "web", None, 1024)]
    answer = await client.get("/v1/xenstore", params={"path": "/local/domain/3"})
    assert {"path": "/local/domain/3/name", "value": "web", "permissions": ["n0", "r3"]} in answer.json()["nodes"]
    answer = await client.get("/v1/xenstore/node", params={"path": "/"})
    assert answer.json() == {"path": "/", "permissions": ["n0"], "children": ["tool", "vm", "local"]}


async def test_refusals(client: httpx2.AsyncClient, core: FakeCore) -> None:
    core.places = [Place(3, "u", "web")]
    for path, status in (("/nothing", 404), ("a b", 400)):
        assert (await client.get("/v1/xenstore/node", params={"path": path})).status_code == status
    assert (await client.get("/v1/xenstore")).status_code == 400
    assert (await client.get("/v1/xenstore/watch")).status_code == 400
    for verb, body, status in (
        ("write", {"values": {"/local/domain/3/x": ""}}, 422),
        ("write", {"values": {"/x": ""}}, 409),
        ("remove", {"path": "/local/domain/3"}, 422),
        ("permissions", {"path": "/local/domain/3", "permissions": ["?"]}, 400),
    ):
        assert (await client.post(f"/v1/xenstore/{verb}", json=body)).status_code == status, verb
    assert (await client.post("/v1/xenstore/write", json={"values": {}})).status_code == 204


async def test_a_watch_is_lines_of_json_until_xend_ends(client: httpx2.AsyncClient, core: FakeCore) -> None:
    core.events.close()
    answer = await client.get("/v1/xenstore/watch?path=/&path=@releaseDomain")
    assert [json.loads(line)["path"] for line in answer.text.splitlines()] == ["/", "@releaseDomain"]

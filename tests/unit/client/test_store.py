"""The client's calls on xenstore, awaited and not."""

from __future__ import annotations

import msgspec
import pytest

from pyxen import errors
from pyxen.api import StoreEvent, StoreNode, StoreTree
from pyxen.client import Address, AsyncClient, Client

from .stub import Stub, chunks, problem

NODE = StoreNode("/a b", "x\\xff", ["n0"], ["c"])
EVENT = StoreEvent("/a/c", "/a")
BODIES = [
    {"values": {"/a": "\\000\\\\"}},
    {"path": "/a", "tidy": True},
    {"path": "/a", "permissions": ["n0", "r3"], "recurse": True, "upwards": False},
]


@pytest.fixture(autouse=True)
def answers(stub: Stub) -> None:
    stub.answers = {
        "GET /v1/xenstore?path=%2F": StoreTree([NODE]),
        "GET /v1/xenstore/node?path=%2Fa+b": NODE,
        "GET /v1/xenstore/node?path=%2Fnothing": problem(404, "not-found", "xenstore has no /nothing"),
        "GET /v1/xenstore/watch?path=%2Fa&path=%40releaseDomain": chunks(msgspec.json.encode(EVENT) + b"\n"),
        "GET /v1/xenstore/watch?path=x+y": problem(400, "invalid-request", "'x y' is no path"),
        **{f"POST /v1/xenstore/{verb}": (204, b"") for verb in ("write", "remove", "permissions")},
    }


def sent(stub: Stub) -> list[object]:
    return [msgspec.json.decode(request.body) for request in stub.requests if request.method == "POST"]


def test_calls(stub: Stub, client: Client) -> None:
    assert client.store_tree() == [NODE]
    assert client.store_read("/a b") == b"x\xff"
    client.store_write({"/a": b"\0\\"})
    client.store_remove("/a", tidy=True)
    client.store_permissions("/a", ["n0", "r3"], recurse=True)
    assert sent(stub) == BODIES
    with pytest.raises(errors.NotFound, match="/nothing"):
        client.store_node("/nothing")
    events = client.store_watch(["/a", "@releaseDomain"])
    assert next(events) == EVENT
    with pytest.raises(errors.Unavailable, match="ended the watch"):
        next(events)
    with pytest.raises(errors.InvalidRequest, match="no path"):
        next(client.store_watch(["x y"]))


@pytest.mark.anyio
async def test_the_same_awaited(stub: Stub) -> None:
    async with AsyncClient(Address(socket=stub.path)) as client:
        assert await client.store_tree() == [NODE]
        assert await client.store_read("/a b") == b"x\xff"
        await client.store_write({"/a": b"\0\\"})
        await client.store_remove("/a", tidy=True)
        await client.store_permissions("/a", ["n0", "r3"], recurse=True)
        assert sent(stub) == BODIES
        with pytest.raises(errors.NotFound, match="/nothing"):
            await client.store_node("/nothing")
        with pytest.raises(errors.Unavailable, match="ended the watch"):
            assert [event async for event in client.store_watch(["/a", "@releaseDomain"])] == [EVENT]
        with pytest.raises(errors.InvalidRequest, match="no path"):
            await anext(client.store_watch(["x y"]))

"""The description covers the table, and what the application does conforms to the description."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx2
import pytest

from pyxen import api
from pyxen.xend.http.app import make_operations

pytestmark = pytest.mark.anyio


@pytest.fixture
async def document(client: httpx2.AsyncClient) -> dict[str, Any]:
    found: dict[str, Any] = (await client.get("/v1/openapi.json")).json()
    return found


def operations(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {
        (method.upper(), path): operation
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if method != "parameters"
    }


async def test_it_has_every_operation(document: dict[str, Any]) -> None:
    described = operations(document)
    assert set(described) == {(each.method, each.path) for each in make_operations("1", Path("x"))}
    assert len({operation["operationId"] for operation in described.values()}) == len(described)


async def test_it_has_every_path_that_the_api_module_promises(document: dict[str, Any]) -> None:
    promised = re.findall(r"^    (GET|POST|DELETE|WS) +(/\S+)", api.__doc__ or "", re.MULTILINE)
    assert len(promised) == 57
    for method, path in promised:
        assert method.lower().replace("ws", "get") in document["paths"][path]


async def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    names = re.findall(r"'\$ref': '#/components/schemas/(\w+)'", repr(document))
    assert {"Domain", "Problem", "DomainConfig", "Progress", "Event"} <= document["components"]["schemas"].keys()
    assert set(names) <= document["components"]["schemas"].keys()


async def test_each_operation_says_how_it_may_fail(document: dict[str, Any]) -> None:
    for operation in operations(document).values():
        assert operation["summary"]
        assert "application/problem+json" in operation["responses"]["400"]["content"]


async def test_the_schema_of_a_domain(client: httpx2.AsyncClient) -> None:
    schema = (await client.get("/v1/schema/domain")).json()
    assert schema["$schema"].endswith("2020-12/schema")
    assert "memory" in schema["$defs"]["DomainConfig"]["properties"]

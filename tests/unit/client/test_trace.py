from __future__ import annotations

import msgspec
import pytest

from pyxen import errors
from pyxen.api import TraceRecord
from pyxen.client import Address, AsyncClient, Client

from .stub import Stub, chunks, problem

RECORDS = [TraceRecord("hypercall", "sched_op", "poll", 0.5, 0, {"ports": [3]}, us=1.5), TraceRecord("end", "poweroff")]
BODY = [msgspec.json.encode(record) + b"\n" for record in RECORDS]


def answers(stub: Stub) -> None:
    stub.answers = {
        "GET /v1/domains/web/trace": chunks(*BODY),
        "GET /v1/domains/web/trace?only=port&only=msr": chunks(BODY[1]),
        "GET /v1/domains/cut/trace": chunks(BODY[0]),
        "GET /v1/domains/hvm/trace": problem(422, "unsupported", "QEMU runs 'hvm'"),
    }


def test_a_trace_ends_with_its_domain(stub: Stub, client: Client) -> None:
    answers(stub)
    assert list(client.trace("web")) == RECORDS
    assert list(client.trace("web", ["port", "msr"])) == RECORDS[1:]
    with pytest.raises(errors.Unavailable, match="ended the trace"):
        list(client.trace("cut"))
    with pytest.raises(errors.Unsupported, match="QEMU"):
        next(client.trace("hvm"))


@pytest.mark.anyio
async def test_the_same_awaited(stub: Stub) -> None:
    answers(stub)
    async with AsyncClient(Address(socket=stub.path)) as client:
        assert [record async for record in client.trace("web")] == RECORDS
        with pytest.raises(errors.Unavailable, match="ended the trace"):
            _ = [record async for record in client.trace("cut")]
        with pytest.raises(errors.Unsupported, match="QEMU"):
            await anext(client.trace("hvm"))

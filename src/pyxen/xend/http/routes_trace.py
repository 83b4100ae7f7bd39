"""Seeing what a domain asks of its hypervisor."""

from __future__ import annotations

from starlette.responses import Response

from pyxen import api
from pyxen.errors import InvalidRequest
from pyxen.xend.http.operation import Call, Operation, Parameter
from pyxen.xend.http.streams import Stream

_SCHEMA = {"type": "array", "items": {"type": "string", "enum": list(api.TRACE_KINDS)}}


async def _trace(call: Call) -> Response:
    only = call.texts("only")
    if unknown := [kind for kind in only if kind not in api.TRACE_KINDS]:
        raise InvalidRequest(f"there is no kind {unknown[0][:40]!r}", hint=f"There are {', '.join(api.TRACE_KINDS)}.")
    return Stream(await call.core.trace(call.ref("domain"), only), "application/x-ndjson")


OPERATIONS = (
    Operation(
        "GET", "/v1/domains/{domain}/trace", "traceDomain",
        "What a domain asks of its hypervisor, as it happens: lines of TraceRecord, until the domain ends", _trace,
        media_type="application/x-ndjson", stream=True, item=api.TraceRecord, errors=(404, 409, 422, 500, 507),
        parameters=(Parameter("only", "records of these kinds", schema=_SCHEMA),),
    ),
)  # fmt: skip

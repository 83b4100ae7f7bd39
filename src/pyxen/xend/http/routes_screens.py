"""Pictures of domains' screens."""

from __future__ import annotations

from starlette.responses import Response

from pyxen.xend.http.operation import Call, Operation

_PNG = "image/png"


async def _picture(call: Call) -> Response:
    return Response(await call.core.screens.picture(call.ref("domain")), media_type=_PNG)


OPERATIONS = (
    Operation(
        "GET", "/v1/domains/{domain}/screen", "getScreen", "What a domain's screen shows, as PNG", _picture,
        media_type=_PNG, errors=(404, 409, 422, 500),
    ),
)  # fmt: skip

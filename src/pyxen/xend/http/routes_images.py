"""Operations on images."""

from __future__ import annotations

import asyncio

from starlette.responses import Response

from pyxen import api
from pyxen.xend.http.operation import Call, Operation
from pyxen.xend.http.streams import Stream, ndjson

_ONE = "/v1/images/{image}"


async def _list(call: Call) -> api.ImageList:
    return await asyncio.to_thread(call.core.images)


async def _build(call: Call) -> Response:
    steps = await call.core.build_image(call.ref("image"), call.body)
    return Stream(ndjson(steps), "application/x-ndjson")


async def _remove(call: Call) -> None:
    await call.core.remove_image(call.ref("image"))


OPERATIONS = (
    Operation("GET", "/v1/images", "listImages", "Images there are, and those that can be built", _list,
              result=api.ImageList),
    Operation(
        "POST", f"{_ONE}/build", "buildImage", "Build an image: lines of Progress; leaving ends the building", _build,
        body=api.BuildRequest, body_optional=True, media_type="application/x-ndjson", stream=True, item=api.Progress,
        errors=(404, 409, 422, 507),
    ),
    Operation("DELETE", _ONE, "removeImage", "Remove an image that no domain uses", _remove,
              status=204, errors=(404, 409)),
)  # fmt: skip

"""xenstore: one tree out of all domains' stores."""

from __future__ import annotations

from starlette.responses import Response

from pyxen import api
from pyxen.errors import InvalidRequest
from pyxen.xend.http.operation import Call, Operation, Parameter
from pyxen.xend.http.streams import Stream

_PATH = Parameter("path", "a path, absolute or below /local/domain/0", schema={"type": "string"}, required=True)
_PATHS = Parameter("path", "paths", schema={"type": "array", "items": {"type": "string"}, "minItems": 1}, required=True)


def _path(call: Call) -> str:
    given = call.texts("path")
    if len(given) != 1:
        raise InvalidRequest("the query parameter 'path' must be given once", hint="For the whole tree: ?path=/")
    return given[0]


async def _tree(call: Call) -> api.StoreTree:
    return await call.core.xenstore.tree(_path(call))


async def _node(call: Call) -> api.StoreNode:
    return await call.core.xenstore.node(_path(call))


async def _write(call: Call) -> None:
    await call.core.xenstore.write(call.body.values)


async def _remove(call: Call) -> None:
    await call.core.xenstore.remove(call.body.path, tidy=call.body.tidy)


async def _permissions(call: Call) -> None:
    body = call.body
    await call.core.xenstore.set_permissions(body.path, body.permissions, recurse=body.recurse, upwards=body.upwards)


async def _watch(call: Call) -> Response:
    return Stream(call.core.xenstore.watch(call.texts("path")), "application/x-ndjson")


_ERRORS = (404, 409, 422, 500, 507)
OPERATIONS = (
    Operation(
        "GET", "/v1/xenstore", "readXenstoreTree", "A node of xenstore and all below it", _tree,
        result=api.StoreTree, parameters=(_PATH,), errors=_ERRORS,
    ),
    Operation(
        "GET", "/v1/xenstore/node", "readXenstore", "A node of xenstore: value, permissions, children's names", _node,
        result=api.StoreNode, parameters=(_PATH,), errors=_ERRORS,
    ),
    Operation(
        "POST", "/v1/xenstore/write", "writeXenstore", "Set values, making nodes that are missing", _write,
        body=api.StoreWrite, status=204, errors=_ERRORS,
    ),
    Operation(
        "POST", "/v1/xenstore/remove", "removeXenstore", "Remove a node with all below it", _remove,
        body=api.StoreRemove, status=204, errors=_ERRORS,
    ),
    Operation(
        "POST", "/v1/xenstore/permissions", "setXenstorePermissions", "Say who may read and write a node", _permissions,
        body=api.StorePermissions, status=204, errors=_ERRORS,
    ),
    Operation(
        "GET", "/v1/xenstore/watch", "watchXenstore", "What changes at or below paths: lines of StoreEvent", _watch,
        media_type="application/x-ndjson", stream=True, item=api.StoreEvent, parameters=(_PATHS,),
    ),
)  # fmt: skip

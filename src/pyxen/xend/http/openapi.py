"""The API's description in OpenAPI 3.1, made from the table of operations and the structs they name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import Any

import msgspec

from pyxen import api
from pyxen.xend.http.operation import MAX_REF_CHARS, Operation
from pyxen.xend.http.problems import MEDIA_TYPE

_REF = "#/components/schemas/{name}"
_DESCRIPTION = """\
What xend offers to xm, to web pages and to programs. Over the unix socket no credentials are needed: its file mode is
the permission. Over TCP each request carries xend's token. Errors are problem+json (RFC 9457)."""
_PARTS = {
    "domain": "a domain's name, id or UUID; a name wins over an id",
    "peer": "another host's name here",
    "image": "an image's name",
    "pool": "a CPU pool's name",
    "snapshot": "a snapshot's name",
    "pci": "a PCI device's address on the host",
}
_ANY_ERRORS = (400, 401, 403, 500, 503)
_BODY_ERRORS = (413, 415)


def describe_api(operations: Sequence[Operation], version: str) -> dict[str, Any]:
    """The whole document, ready to be encoded as JSON."""
    structs = _structs(operations)
    schemas, components = msgspec.json.schema_components(structs, ref_template=_REF)
    reference = dict(zip(structs, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        item = paths.setdefault(operation.path, _path_item(operation.path))
        item[operation.method.lower()] = _operation(operation, reference)
    return {
        "openapi": "3.1.0",
        "info": {"title": "xend", "version": version, "description": _DESCRIPTION},
        "servers": [{"url": "/"}],
        "security": [{}, {"token": []}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "description": "only over TCP"}},
        },
    }


def _structs(operations: Iterable[Operation]) -> list[type[msgspec.Struct]]:
    named = [struct for each in operations for struct in (each.body, each.result, each.item) if struct is not None]
    return list(dict.fromkeys([*named, api.Problem]))


def _path_item(path: str) -> dict[str, Any]:
    parts = re.findall(r"{(\w+)}", path)
    if not parts:
        return {}
    return {
        "parameters": [
            {
                "name": part,
                "in": "path",
                "required": True,
                "description": _PARTS[part],
                "schema": {"type": "string", "minLength": 1, "maxLength": MAX_REF_CHARS},
            }
            for part in parts
        ]
    }


def _operation(operation: Operation, reference: dict[type[msgspec.Struct], Any]) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "tags": [operation.path.split("/")[2]],
        "responses": _responses(operation, reference),
    }
    if operation.parameters:
        described["parameters"] = [
            {
                "name": parameter.name,
                "in": parameter.where,
                "description": parameter.description,
                "schema": parameter.schema or {"type": "integer", "minimum": 0, "maximum": 2**63 - 1},
                **({"required": True} if parameter.required else {}),
            }
            for parameter in operation.parameters
        ]
    if operation.body is not None:
        described["requestBody"] = {
            "required": not operation.body_optional,
            "content": {"application/json": {"schema": reference[operation.body]}},
        }
    return described


def _responses(operation: Operation, reference: dict[type[msgspec.Struct], Any]) -> dict[str, Any]:
    success: dict[str, Any] = {"description": HTTPStatus(operation.status).phrase}
    if operation.result is not None:
        success["content"] = {operation.media_type: {"schema": reference[operation.result]}}
    elif operation.status == 200:
        success["content"] = {operation.media_type: {"schema": _other_content(operation, reference)}}
    problem = {MEDIA_TYPE: {"schema": reference[api.Problem]}}
    statuses = {*_ANY_ERRORS, *operation.errors, *(_BODY_ERRORS if operation.body else ())}
    return {
        str(operation.status): success,
        **{str(each): {"description": HTTPStatus(each).phrase, "content": problem} for each in sorted(statuses)},
    }


def _other_content(operation: Operation, reference: dict[type[msgspec.Struct], Any]) -> dict[str, Any]:
    """What isn't one struct: text, a document that describes itself, or a stream of structs as far as 3.1 can say."""
    if operation.item is None:
        return {"type": "object" if operation.media_type == "application/json" else "string"}
    item = {"type": "string", "contentMediaType": "application/json", "contentSchema": reference[operation.item]}
    if operation.media_type == "text/event-stream":
        return {"type": "object", "properties": {"id": {"type": "string"}, "data": item}}
    return {"type": "string", "description": f"one {operation.item.__name__} a line"}

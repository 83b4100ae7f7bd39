"""One entry of the API's table, and how a request becomes a call of its handler and the result a response."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pyxen.errors import ConfigError, InvalidRequest, NotFound
from pyxen.xend.core import Core
from pyxen.xend.http.problems import Disconnected, HttpProblem

MAX_BODY_BYTES = 1024 * 1024
MAX_REF_CHARS = 128
_MAX_NUMBER = 2**63 - 1
_JSON = "application/json"
# What curl -d says unless told otherwise; the body is JSON nonetheless.
_FORM = "application/x-www-form-urlencoded"
_VALIDATION = re.compile(r"(?P<what>.*) - at `(?:key in )?\$\.?(?P<path>.*)`", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Parameter:
    """A query parameter or header: a whole number from 0, unless ``schema`` says what else."""

    name: str
    description: str
    where: str = "query"
    schema: Mapping[str, Any] | None = None
    required: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """A request, as a handler sees it."""

    core: Core
    request: Request
    body: Any = None
    """Decoded as the operation's ``body`` type."""

    def ref(self, name: str) -> str:
        """A part of the path that names something. Nothing has a name that long: NotFound without a search."""
        ref: str = self.request.path_params[name]
        if len(ref) > MAX_REF_CHARS:
            raise NotFound(f"{name.capitalize()} '{ref[:40]}…' does not exist")
        return ref

    def number(self, name: str) -> int | None:
        """A query parameter that is a whole number; None if absent. Raises InvalidRequest."""
        return query_number(self.request, name)

    def texts(self, name: str) -> list[str]:
        """A query parameter that is text and may be repeated."""
        return self.request.query_params.getlist(name)


Handler = Callable[[Call], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Operation:
    """A method on a path. The handler returns a struct (sent as JSON), None (no content) or a Response."""

    method: str
    path: str
    name: str
    summary: str
    handler: Handler
    body: type[msgspec.Struct] | None = None
    body_optional: bool = False
    """Without a body all of its fields have their defaults."""
    result: type[msgspec.Struct] | None = None
    status: int = 200
    media_type: str = _JSON
    stream: bool = False
    """The response may go on for ever."""
    item: type[msgspec.Struct] | None = None
    """What a stream consists of."""
    parameters: Sequence[Parameter] = ()
    errors: Sequence[int] = ()
    """Statuses, besides those that any operation may have."""


class Resource:
    """The ASGI application of one path: picks the operation by method."""

    def __init__(self, core: Core, operations: Mapping[str, Operation]) -> None:
        self._core = core
        self._operations = dict(operations)
        if (get := self._operations.get("GET")) is not None and not get.stream:
            self._operations["HEAD"] = get
        self._allow = ", ".join(sorted(self._operations))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        operation = self._operations.get(scope["method"])
        if operation is None:
            raise HttpProblem(
                HTTPStatus.METHOD_NOT_ALLOWED,
                f"{scope['path']} doesn't know the method {scope['method']}",
                hint=f"It knows: {self._allow}",
                headers={"Allow": self._allow},
            )
        request = Request(scope, receive)
        body = await _decode_body(operation, request) if operation.body is not None else None
        result = await operation.handler(Call(self._core, request, body))
        response = result if isinstance(result, Response) else _response(operation, result)
        response.headers["cache-control"] = "no-store"
        await response(scope, receive, send)


def query_number(request: HTTPConnection, name: str) -> int | None:
    """A query parameter that is a whole number; None if absent. Raises InvalidRequest."""
    text = request.query_params.get(name)
    return None if text is None else whole_number(text, f"the query parameter '{name}'")


def whole_number(text: str, what: str) -> int:
    """A decimal number from 0 to 2⁶³-1. Raises InvalidRequest."""
    # The length first: Python refuses to convert very long ones.
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= _MAX_NUMBER):
        raise InvalidRequest(f"{what} is {text[:40]!r}", hint="It must be a whole number, 0 or more.")
    return int(text)


def _response(operation: Operation, result: msgspec.Struct | None) -> Response:
    if result is None:
        return Response(status_code=204)
    return Response(msgspec.json.encode(result), operation.status, media_type=_JSON)


async def _decode_body(operation: Operation, request: Request) -> msgspec.Struct:
    assert operation.body is not None
    kind = request.headers.get("content-type", _JSON).partition(";")[0].strip().lower()
    raw = await _read_body(request)
    if not raw and operation.body_optional:
        return operation.body()
    if kind not in (_JSON, _FORM) and not kind.endswith("+json"):
        raise HttpProblem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"the request's body is {kind}", hint=f"Send {_JSON}.")
    if not raw:
        raise InvalidRequest("the request has no body", hint=f"Send {operation.body.__name__} as JSON.")
    try:
        return msgspec.json.decode(raw, type=operation.body)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the request's body is not JSON: {error}") from None
    except RecursionError:
        raise InvalidRequest("the request's body is nested too deeply") from None


async def _read_body(request: Request) -> bytes:
    announced = request.headers.get("content-length", "0")
    # A digit too many is refused here, an untrue number by the server.
    if len(announced) > 9 or (announced.isdigit() and int(announced) > MAX_BODY_BYTES):
        raise _too_large()
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > MAX_BODY_BYTES:
            raise _too_large()
        chunks.append(chunk)
        if not message.get("more_body", False):
            return b"".join(chunks)


def _too_large() -> HttpProblem:
    return HttpProblem(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"the request's body is larger than {MAX_BODY_BYTES // 1024} KiB",
        headers={"Connection": "close"},
    )


def _invalid(message: str) -> InvalidRequest:
    """msgspec's complaint with the key in front: ``config.memory: expected int, got str``."""
    found = _VALIDATION.fullmatch(message)
    what, path = (found["what"], found["path"]) if found else (message, "")
    what = what.replace("`", "")
    what = what[:1].lower() + what[1:]
    if not path.startswith("config"):
        return InvalidRequest(f"{path}: {what}" if path else what)
    key = path.removeprefix("config").removeprefix(".")
    return ConfigError(f"{key}: {what}" if key else what, key=key or None)

"""xend's ASGI application: the operations of :mod:`pyxen.api`, behind the guard, with every error as a problem.

One application serves both listeners; what it asks of a caller depends on where the request came in (``guard``).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from pathlib import Path

import msgspec
from starlette.responses import Response
from starlette.routing import Route, Router, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from pyxen.config.schema import schema
from pyxen.xend.core import Core
from pyxen.xend.http import (
    routes_cpupools,
    routes_devices,
    routes_domains,
    routes_host,
    routes_images,
    routes_migration,
    routes_passthrough,
    routes_run,
    routes_scheduling,
    routes_screens,
    routes_snapshots,
    routes_trace,
    routes_xenstore,
)
from pyxen.xend.http.agent_ws import AgentSocket, RunSocket
from pyxen.xend.http.console_ws import ConsoleSocket
from pyxen.xend.http.guard import Guard
from pyxen.xend.http.openapi import describe_api
from pyxen.xend.http.operation import Call, Operation, Resource
from pyxen.xend.http.problems import HttpProblem, Problems


def make_app(core: Core, *, version: str, token: str | None, log_path: Path) -> ASGIApp:
    """The application for ``core``. TCP callers must present ``token``; with None there are no TCP callers."""
    operations = make_operations(version, log_path)
    by_path: dict[str, dict[str, Operation]] = {}
    for operation in operations:
        by_path.setdefault(operation.path, {})[operation.method] = operation
    routes = [
        WebSocketRoute("/v1/domains/{domain}/console", ConsoleSocket(core).serve),
        WebSocketRoute("/v1/domains/{domain}/agent", AgentSocket(core).serve),
        WebSocketRoute("/v1/run", RunSocket(core).serve),
        *(Route(path, Resource(core, methods)) for path, methods in by_path.items()),
    ]
    return Problems(Guard(Router(routes, redirect_slashes=False, default=_nowhere), token))


def make_operations(version: str, log_path: Path) -> Sequence[Operation]:
    """The whole table, the operations that describe it included."""
    table = (
        *routes_host.operations(version, log_path),
        *routes_domains.OPERATIONS,
        *routes_devices.OPERATIONS,
        *routes_passthrough.OPERATIONS,
        *routes_images.OPERATIONS,
        *routes_scheduling.OPERATIONS,
        *routes_screens.OPERATIONS,
        *routes_snapshots.OPERATIONS,
        *routes_cpupools.OPERATIONS,
        *routes_migration.OPERATIONS,
        *routes_run.OPERATIONS,
        *routes_trace.OPERATIONS,
        *routes_xenstore.OPERATIONS,
        Operation(
            "GET", "/v1/schema/domain", "getDomainSchema", "JSON schema of a domain's description",
            _document(schema),
        ),
    )  # fmt: skip

    def described() -> dict[str, object]:
        return describe_api((*table, itself), version)

    itself = Operation("GET", "/v1/openapi.json", "getOpenapi", "This description", _document(described))
    return (*table, itself)


def _document(make: Callable[[], dict[str, object]]) -> Callable[[Call], Awaitable[Response]]:
    """A handler that sends a JSON document, made at the first request."""
    made: list[bytes] = []

    async def send(_call: Call) -> Response:
        if not made:
            made.append(msgspec.json.encode(make()))
        return Response(made[0], media_type="application/json")

    return send


async def _nowhere(scope: Scope, _receive: Receive, _send: Send) -> None:
    raise HttpProblem(HTTPStatus.NOT_FOUND, f"there is nothing at {scope['path']}", hint="See: GET /v1/openapi.json")

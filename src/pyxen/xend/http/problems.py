"""Every error as ``application/problem+json`` (RFC 9457), wherever it was raised."""

from __future__ import annotations

import logging
from http import HTTPStatus

import msgspec
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pyxen.api import Problem
from pyxen.errors import ConfigError, PyxenError

MEDIA_TYPE = "application/problem+json"
_log = logging.getLogger(__name__)


class HttpProblem(PyxenError):
    """An error of the protocol itself; ``status`` and ``headers`` are each one's own."""

    def __init__(
        self, status: HTTPStatus, message: str, *, hint: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.status = status.value
        self.code = status.phrase.lower().replace(" ", "-")
        self.headers = headers or {}


class Disconnected(Exception):
    """The client has gone; nobody is there to be told."""


def describe(error: Exception) -> Problem:
    """The problem to send. One that nobody expected says nothing of its inside: the log has that."""
    if not isinstance(error, PyxenError):
        return Problem(
            title="Internal Server Error",
            status=500,
            detail="xend met an error that it did not expect",
            code="internal",
            hint="The traceback is in xend's log: xm log",
        )
    return Problem(
        title=HTTPStatus(error.status).phrase,
        status=error.status,
        detail=str(error),
        code=error.code,
        hint=error.hint,
        key=error.key if isinstance(error, ConfigError) else None,
    )


def problem_response(error: Exception) -> Response:
    """``describe``, as a response."""
    problem = describe(error)
    headers = error.headers if isinstance(error, HttpProblem) else None
    return Response(msgspec.json.encode(problem), problem.status, headers, MEDIA_TYPE)


class Problems:
    """The outermost layer: what is raised below becomes a response, if none has begun."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def noticing(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, noticing)
        except Disconnected:
            return
        except Exception as error:
            if not isinstance(error, PyxenError):
                _log.exception("%s %s failed", scope.get("method", scope["type"]), scope.get("path", ""))
            if not begun:
                await _refuse(error, scope, receive, send)
            elif scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1011, "reason": describe(error).detail[:120]})
            else:
                # The status has been sent: a connection that breaks off is the one sign left.
                raise


async def _refuse(error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket" and "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 1008, "reason": describe(error).detail[:120]})
        return
    await problem_response(error)(scope, receive, send)

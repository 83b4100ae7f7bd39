"""Who may call. The unix socket's file mode has answered that already; over TCP it takes the token.

A page in a browser on this machine can reach a loopback port too, under a name that its author's DNS points here. So
over TCP the Host header must name the loopback itself.
"""

from __future__ import annotations

import hmac
import ipaddress
from http import HTTPStatus

from starlette.types import ASGIApp, Receive, Scope, Send

from pyxen.xend.http.problems import HttpProblem


class Guard:
    """Lets the unix socket's callers through, and TCP's that present ``token``; None: no TCP at all."""

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app = app
        self._wanted = None if token is None else f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan" and not _is_unix(scope):
            self._check(dict(scope["headers"]))
        await self._app(scope, receive, send)

    def _check(self, headers: dict[bytes, bytes]) -> None:
        host = headers.get(b"host", b"").decode("latin-1")
        if not is_loopback(host):
            raise HttpProblem(
                HTTPStatus.FORBIDDEN,
                f"requests for the host {host!r} are not answered here",
                hint="Use http://localhost:PORT or http://127.0.0.1:PORT.",
            )
        given = headers.get(b"authorization", b"")
        if self._wanted is None or not hmac.compare_digest(given, self._wanted):
            raise HttpProblem(
                HTTPStatus.UNAUTHORIZED,
                "over TCP xend answers only those who know its token",
                hint="Send 'Authorization: Bearer TOKEN'; the token is in the file 'token' next to xend's socket.",
                headers={"WWW-Authenticate": "Bearer"},
            )


def is_loopback(host: str) -> bool:
    """Whether a Host header, with or without a port, means this machine for everybody."""
    name, bracket, _ = host.partition("]")
    name = name.removeprefix("[") if bracket else host.partition(":")[0]
    if name.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _is_unix(scope: Scope) -> bool:
    """A unix listener's address, per ASGI, is its path and no port. Anything unclear counts as TCP."""
    host, port = scope.get("server") or ("", None)
    return port is None and str(host).startswith("/")

"""``xm run``, as far as HTTP goes: the rest is a WebSocket."""

from __future__ import annotations

from http import HTTPStatus

from pyxen.xend.http.operation import Call, Operation
from pyxen.xend.http.problems import HttpProblem


async def _needs_websocket(_call: Call) -> None:
    raise HttpProblem(
        HTTPStatus.UPGRADE_REQUIRED,
        "a command runs over a WebSocket",
        hint="Try: xm run -- COMMAND",
        headers={"Upgrade": "websocket"},
    )


OPERATIONS = (
    Operation(
        "GET", "/v1/run", "openRun", "A command with a domain of its own, over a WebSocket", _needs_websocket,
        status=101, stream=True, errors=(426,),
    ),
)  # fmt: skip

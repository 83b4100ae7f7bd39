"""Operations on the host and on xend itself."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from starlette.responses import PlainTextResponse, Response

from pyxen import api
from pyxen.xend.http.operation import Call, Operation, Parameter, whole_number
from pyxen.xend.http.streams import Stream, file_growth, file_tail, sse


def operations(version: str, log_path: Path) -> Sequence[Operation]:
    """The table's part that says who and where this xend is."""

    async def get_version(_call: Call) -> api.Version:
        return api.Version(version)

    async def get_log(call: Call) -> Response:
        return Stream(file_tail(log_path, call.number("tail")), "text/plain; charset=utf-8")

    async def follow_log(call: Call) -> Response:
        growth = file_growth(log_path, call.number("tail"), call.core.events.until_closed())
        return Stream(growth, "text/plain; charset=utf-8")

    return (
        Operation("GET", "/v1/host", "getHost", "The host: hardware, engines, memory", _host, result=api.Host),
        Operation(
            "GET", "/v1/host/topology", "getTopology", "The host's CPUs and NUMA nodes", _topology,
            result=api.HostTopology,
        ),
        Operation("GET", "/v1/version", "getVersion", "xend's version", get_version, result=api.Version),
        Operation(
            "GET", "/v1/events", "followEvents", "What happens, as server-sent events of type Event", _events,
            media_type="text/event-stream", stream=True, item=api.Event,
            parameters=(
                Parameter("after", "replay what is still kept after this sequence number"),
                Parameter("Last-Event-ID", "the same, as browsers say it on reconnecting", where="header"),
            ),
        ),
        Operation(
            "GET", "/v1/log", "readLog", "xend's log", get_log,
            media_type="text/plain", parameters=(Parameter("tail", "only so many lines from the end"),),
        ),
        Operation(
            "GET", "/v1/log/follow", "followLog", "xend's log, and what is written to it, without end", follow_log,
            media_type="text/plain", stream=True, parameters=(Parameter("tail", "begin so many lines from the end"),),
        ),
        Operation("GET", "/v1/dmesg", "readDmesg", "The hypervisor's messages", _dmesg, media_type="text/plain"),
        Operation(
            "POST", "/v1/debug-keys", "pressDebugKeys", "Have the hypervisor say what it knows, in dmesg", _debug_keys,
            body=api.DebugKeysRequest, status=204,
        ),
    )  # fmt: skip


async def _host(call: Call) -> api.Host:
    # An engine that hasn't been asked yet probes the machine.
    return await asyncio.to_thread(call.core.host)


async def _topology(call: Call) -> api.HostTopology:
    return await asyncio.to_thread(call.core.topology)


async def _events(call: Call) -> Response:
    after = call.number("after")
    last_seen = call.request.headers.get("last-event-id")
    if last_seen is not None:
        after = whole_number(last_seen, "the header Last-Event-ID")
    return Stream(sse(call.core.events.subscribe(after)), "text/event-stream")


async def _debug_keys(call: Call) -> None:
    await call.core.debug_keys(call.body.keys)


async def _dmesg(call: Call) -> Response:
    return PlainTextResponse(call.core.dmesg())

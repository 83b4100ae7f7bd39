"""Operations on migrations and on the hosts that they go between."""

from __future__ import annotations

import asyncio

from starlette.responses import Response

from pyxen import api
from pyxen.xend.http.operation import Call, Operation
from pyxen.xend.http.streams import Stream, ndjson

_ONE = "/v1/domains/{domain}/migrate"


async def _migrate(call: Call) -> Response:
    steps = await call.core.migration.outgoing.migrate(call.ref("domain"), call.body)
    return Stream(ndjson(steps), "application/x-ndjson")


async def _cancel(call: Call) -> api.Domain:
    record = await call.core.migration.outgoing.cancel(call.ref("domain"))
    return call.core.get(record.uuid)


async def _here(call: Call) -> api.Domain:
    record = await call.core.migration.outgoing.here(call.ref("domain"))
    return call.core.get(record.uuid)


async def _peers(call: Call) -> api.PeerList:
    return await asyncio.to_thread(call.core.migration.peers.list)


async def _add(call: Call) -> api.Peer:
    return await asyncio.to_thread(call.core.migration.peers.add, call.ref("peer"), call.body.certificate)


async def _remove(call: Call) -> None:
    await asyncio.to_thread(call.core.migration.peers.remove, call.ref("peer"))


OPERATIONS = (
    Operation(
        "POST", _ONE, "migrateDomain", "Move a running domain to another host: lines of Progress; leaving calls it off",
        _migrate, body=api.MigrateRequest, media_type="application/x-ndjson", stream=True, item=api.Progress,
        errors=(404, 409, 422, 500),
    ),
    Operation(
        "POST", f"{_ONE}/cancel", "cancelMigration", "Call a migration off; returns when the domain goes on here",
        _cancel, result=api.Domain, errors=(404, 409),
    ),
    Operation(
        "POST", f"{_ONE}/here", "keepDomain",
        "Let a domain go on here that was given to a host which does not answer, and certainly doesn't run it", _here,
        result=api.Domain, errors=(404, 409),
    ),
    Operation("GET", "/v1/peers", "listPeers", "Other hosts that are trusted, and what to show them", _peers,
              result=api.PeerList, errors=(507,)),
    Operation("PUT", "/v1/peers/{peer}", "addPeer", "Trust another host by its certificate", _add,
              body=api.PeerRequest, result=api.Peer, errors=(404, 409, 507)),
    Operation("DELETE", "/v1/peers/{peer}", "removePeer", "Trust another host no more", _remove,
              status=204, errors=(404,)),
)  # fmt: skip

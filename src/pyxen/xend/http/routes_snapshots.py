"""Operations on snapshots, and clones."""

from __future__ import annotations

import asyncio

from pyxen import api, snapshot_api
from pyxen.xend.http.operation import Call, Operation

_OF = "/v1/domains/{domain}/snapshots"
_ONE = f"{_OF}/{{snapshot}}"


async def _all(call: Call) -> snapshot_api.SnapshotList:
    return await asyncio.to_thread(call.core.snapshots.listed)


async def _list(call: Call) -> snapshot_api.SnapshotList:
    return await asyncio.to_thread(call.core.snapshots.listed, call.ref("domain"))


async def _create(call: Call) -> snapshot_api.Snapshot:
    return await call.core.snapshots.create(call.ref("domain"), call.body)


async def _revert(call: Call) -> api.Domain:
    return await call.core.revert(call.ref("domain"), call.ref("snapshot"), call.body)


async def _remove(call: Call) -> None:
    await call.core.snapshots.remove(call.ref("domain"), call.ref("snapshot"))


async def _clone(call: Call) -> api.Domain:
    return await call.core.clone(call.ref("domain"), call.body)


OPERATIONS = (
    Operation(
        "GET", "/v1/snapshots", "listAllSnapshots", "Snapshots of all domains", _all,
        result=snapshot_api.SnapshotList,
    ),
    Operation(
        "GET", _OF, "listSnapshots", "A domain's snapshots", _list,
        result=snapshot_api.SnapshotList, errors=(404,),
    ),
    Operation(
        "POST", _OF, "createSnapshot", "Keep a domain's memory and disks as they are now", _create,
        body=snapshot_api.SnapshotRequest, result=snapshot_api.Snapshot, status=201, errors=(404, 409, 422, 500, 507),
    ),
    Operation(
        "POST", f"{_ONE}/revert", "revertDomain", "Take a domain back to a snapshot", _revert,
        body=snapshot_api.RevertRequest, body_optional=True, result=api.Domain, errors=(404, 409, 422, 500, 507),
    ),
    Operation("DELETE", _ONE, "removeSnapshot", "Remove a snapshot", _remove, status=204, errors=(404,)),
    Operation(
        "POST", "/v1/domains/{domain}/clone", "cloneDomain", "Start a copy of a domain, or of a snapshot", _clone,
        body=snapshot_api.CloneRequest, result=api.Domain, status=201, errors=(404, 409, 422, 500, 507),
    ),
)  # fmt: skip

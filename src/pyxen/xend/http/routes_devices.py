"""Operations on a domain's disks and network interfaces."""

from __future__ import annotations

from pyxen import agent_api, api, device_api
from pyxen.xend.http.operation import Call, Operation

_ONE = "/v1/domains/{domain}"
_ERRORS = (404, 409, 422, 500, 507)


async def _list(call: Call) -> device_api.DeviceList:
    return call.core.devices.list(call.ref("domain"))


async def _interfaces(call: Call) -> agent_api.GuestInterfaces:
    return await call.core.agent.interfaces(call.ref("domain"))


async def _attach_disk(call: Call) -> api.Domain:
    return await call.core.devices.attach_disk(call.ref("domain"), call.body.disk)


async def _detach_disk(call: Call) -> api.Domain:
    return await call.core.devices.detach_disk(call.ref("domain"), call.body.vdev, force=call.body.force)


async def _change_disc(call: Call) -> api.Domain:
    return await call.core.devices.change_disc(call.ref("domain"), call.body.vdev, call.body.target or "")


async def _resize_disk(call: Call) -> api.Domain:
    return await call.core.devices.resize_disk(call.ref("domain"), call.body.vdev, call.body.size_bytes)


async def _limit_disk(call: Call) -> api.Domain:
    return await call.core.devices.limit_disk(call.ref("domain"), call.body.vdev, call.body.rate, call.body.iops)


async def _limit_vif(call: Call) -> api.Domain:
    return await call.core.devices.limit_vif(call.ref("domain"), call.body.vif, call.body.rate)


async def _attach_vif(call: Call) -> api.Domain:
    return await call.core.devices.attach_vif(call.ref("domain"), call.body.vif)


async def _detach_vif(call: Call) -> api.Domain:
    return await call.core.devices.detach_vif(call.ref("domain"), call.body.vif, force=call.body.force)


OPERATIONS = (
    Operation(
        "GET", f"{_ONE}/devices", "listDevices", "A domain's devices that come and go", _list,
        result=device_api.DeviceList, errors=(404,),
    ),
    Operation(
        "GET", f"{_ONE}/guest-interfaces", "listGuestInterfaces",
        "A guest's network interfaces and addresses, as its agent has them; none where no agent says", _interfaces,
        result=agent_api.GuestInterfaces, errors=(404,),
    ),
    Operation(
        "POST", f"{_ONE}/attach-disk", "attachDisk", "Give a domain a disk", _attach_disk,
        body=device_api.AttachDiskRequest, result=api.Domain, errors=_ERRORS,
    ),
    Operation(
        "POST", f"{_ONE}/detach-disk", "detachDisk", "Have the guest let go of a disk; waits for it", _detach_disk,
        body=device_api.DetachDiskRequest, result=api.Domain, errors=_ERRORS,
    ),
    Operation(
        "POST", f"{_ONE}/change-disc", "changeDisc", "Put a disc into a CD-ROM drive, or take it out", _change_disc,
        body=device_api.ChangeDiscRequest, result=api.Domain, errors=_ERRORS,
    ),
    Operation(
        "POST", f"{_ONE}/resize-disk", "resizeDisk", "Make a running domain's disk longer", _resize_disk,
        body=device_api.ResizeDiskRequest, result=api.Domain, errors=_ERRORS,
    ),
    Operation(
        "POST", f"{_ONE}/limit-disk", "limitDisk", "Limit how much a disk reads and writes", _limit_disk,
        body=device_api.LimitDiskRequest, result=api.Domain, errors=_ERRORS,
    ),
    Operation(
        "POST", f"{_ONE}/limit-vif", "limitVif", "Limit how much a domain sends", _limit_vif,
        body=device_api.LimitVifRequest, result=api.Domain, errors=_ERRORS,
    ),
    Operation(
        "POST", f"{_ONE}/attach-vif", "attachVif", "Give a domain a network interface", _attach_vif,
        body=device_api.AttachVifRequest, result=api.Domain, errors=_ERRORS,
    ),
    Operation(
        "POST", f"{_ONE}/detach-vif", "detachVif", "Have the guest let go of a network interface; waits for it",
        _detach_vif, body=device_api.DetachVifRequest, result=api.Domain, errors=_ERRORS,
    ),
)  # fmt: skip

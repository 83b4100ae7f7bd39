"""Operations on PCI devices of the host and on USB devices."""

from __future__ import annotations

from pyxen import api, device_api
from pyxen.xend.http.operation import Call, Operation

_ONE = "/v1/domains/{domain}"
_PCI = "/v1/pci-devices"
_ERRORS = (404, 409, 422, 500, 507)


async def _host_pci(call: Call) -> device_api.HostPciDevices:
    return await call.core.passthrough.host_pci()


async def _make_assignable(call: Call) -> None:
    await call.core.passthrough.make_assignable(call.ref("pci"))


async def _give_back(call: Call) -> None:
    await call.core.passthrough.give_back(call.ref("pci"))


async def _host_usb(call: Call) -> device_api.HostUsbDevices:
    return await call.core.passthrough.host_usb()


async def _attach_pci(call: Call) -> api.Domain:
    return await call.core.passthrough.attach_pci(call.ref("domain"), call.body.pci)


async def _detach_pci(call: Call) -> api.Domain:
    return await call.core.passthrough.detach_pci(call.ref("domain"), call.body.pci)


async def _attach_usb(call: Call) -> api.Domain:
    return await call.core.passthrough.attach_usb(call.ref("domain"), call.body.usb)


async def _detach_usb(call: Call) -> api.Domain:
    return await call.core.passthrough.detach_usb(call.ref("domain"), call.body.usb)


OPERATIONS = (
    Operation(
        "GET", _PCI, "listPciDevices", "The host's PCI devices, and which domains may have", _host_pci,
        result=device_api.HostPciDevices,
    ),
    Operation(
        "POST", f"{_PCI}/{{pci}}/make-assignable", "makePciAssignable",
        "Take a PCI device from its driver, so that domains may have it", _make_assignable,
        status=204, errors=_ERRORS,
    ),
    Operation(
        "POST", f"{_PCI}/{{pci}}/give-back", "givePciBack", "Let the host have a PCI device again", _give_back,
        status=204, errors=_ERRORS,
    ),
    Operation(
        "GET", "/v1/usb-devices", "listUsbDevices", "The host's USB devices", _host_usb,
        result=device_api.HostUsbDevices,
    ),
    Operation(
        "POST", f"{_ONE}/attach-pci", "attachPci", "Give a domain a PCI device of the host", _attach_pci,
        body=device_api.AttachPciRequest, result=api.Domain, errors=_ERRORS,
    ),
    Operation(
        "POST", f"{_ONE}/detach-pci", "detachPci", "Have the guest let go of a PCI device; waits for it", _detach_pci,
        body=device_api.DetachPciRequest, result=api.Domain, errors=_ERRORS,
    ),
    Operation(
        "POST", f"{_ONE}/attach-usb", "attachUsb", "Give a domain a USB device", _attach_usb,
        body=device_api.AttachUsbRequest, result=api.Domain, errors=_ERRORS,
    ),
    Operation(
        "POST", f"{_ONE}/detach-usb", "detachUsb", "Unplug a USB device of a domain", _detach_usb,
        body=device_api.DetachUsbRequest, result=api.Domain, errors=_ERRORS,
    ),
)  # fmt: skip

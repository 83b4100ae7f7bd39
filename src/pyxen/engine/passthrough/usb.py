"""The host's USB devices as sysfs shows them (Linux, Documentation/ABI/stable/sysfs-bus-usb). Blocking."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from pyxen.config.model import Disk, DiskAccess, UsbDevice, UsbType, usb_device
from pyxen.engine.contract import DomainSpec
from pyxen.engine.passthrough.names import names
from pyxen.engine.passthrough.tree import HostTree, read, read_number, uses
from pyxen.errors import Conflict, EngineError, NotFound

_HUB = 0x09
_HINT = "See what there is: xm usb-list-assignable-devices"


@dataclass(frozen=True, slots=True)
class HostUsbDevice:
    """A device on the host's USB, hubs left out."""

    port: str
    """The kernel's name for where it is plugged in: ``1-2.4``."""
    bus: int
    address: int
    vendor: str
    product: str
    """Four hexadecimal digits each."""
    label: str
    used: str
    """What the host does with it."""

    @property
    def shown(self) -> str:
        return f"{self.bus}.{self.address} ({self.vendor}:{self.product} {self.label})".replace(" )", ")")


def devices(tree: HostTree) -> list[HostUsbDevice]:
    """All of them but hubs, by bus and address."""
    found = []
    for path in (tree.sys / "bus/usb/devices").glob("*"):
        # Those with a colon are interfaces of devices.
        if ":" in path.name or not (path / "idVendor").exists() or read_number(path / "bDeviceClass") == _HUB:
            continue
        vendor, product = read_number(path / "idVendor"), read_number(path / "idProduct")
        known = names(tree.share, "usb.ids", vendor, product)
        own = (read(path / "manufacturer") or known[0], read(path / "product") or known[1])
        found.append(
            HostUsbDevice(
                path.name,
                read_number(path / "busnum", 10),
                read_number(path / "devnum", 10),
                f"{vendor:04x}",
                f"{product:04x}",
                " ".join(part for part in own if part),
                uses(tree, path),
            )
        )
    return sorted(found, key=lambda each: (each.bus, each.address))


def node(tree: HostTree, bus: int, address: int) -> Path:
    """What has to be opened to speak to a device."""
    return tree.dev / "bus/usb" / f"{bus:03d}" / f"{address:03d}"


def owners(running: Iterable[DomainSpec]) -> dict[tuple[int | None, int | None], str]:
    """Which domain has which of the host's devices."""
    return {
        (each.hostbus, each.hostaddr): spec.config.name
        for spec in running
        for each in spec.config.usbdev
        if each.type is UsbType.HOST
    }


def settle(tree: HostTree, name: str, wanted: Sequence[UsbDevice], running: Iterable[DomainSpec]) -> list[UsbDevice]:
    """The devices of the domain ``name``, those of the host by where they are now. Raises NotFound, Conflict."""
    taken = owners(running)
    there = devices(tree) if any(each.type is UsbType.HOST for each in wanted) else []
    settled = []
    for each in wanted:
        if each.type is UsbType.HOST:
            found = _find(each, there, taken)
            taken[found.bus, found.address] = name
            each = msgspec.structs.replace(each, hostbus=found.bus, hostaddr=found.address, vendor=None, product=None)
        settled.append(each)
    return settled


def _find(
    wanted: UsbDevice, there: Iterable[HostUsbDevice], taken: dict[tuple[int | None, int | None], str]
) -> HostUsbDevice:
    by_place = wanted.hostbus is not None
    what = f"{wanted.hostbus}.{wanted.hostaddr}" if by_place else f"{wanted.vendor}:{wanted.product}"
    fitting = [
        each
        for each in there
        if (wanted.hostbus, wanted.hostaddr) == (each.bus, each.address)
        or (wanted.vendor, wanted.product) == (each.vendor, each.product)
    ]
    if not fitting:
        raise NotFound(f"this host has no USB device {what}", hint=_HINT)
    free = [each for each in fitting if (each.bus, each.address) not in taken]
    if not free:
        owner = taken[fitting[0].bus, fitting[0].address]
        raise Conflict(f"USB device {fitting[0].shown} is in use by domain '{owner}'", hint=_HINT)
    if free[0].used:
        raise Conflict(
            f"USB device {free[0].shown} is in use by the host: {free[0].used}",
            hint="Have the host let go of it first.",
        )
    return free[0]


def open_device(tree: HostTree, wanted: UsbDevice) -> int:
    """A descriptor by which a settled device of the host can be spoken to. Raises EngineError."""
    assert wanted.hostbus is not None and wanted.hostaddr is not None
    path = node(tree, wanted.hostbus, wanted.hostaddr)
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise EngineError(f"cannot open {path}: {error.strerror}", hint=_HINT) from error


def as_disk(number: int, device: UsbDevice) -> Disk:
    """A USB disk as the block layer knows disks, under the device's id."""
    access = DiskAccess.READ if device.readonly else DiskAccess.WRITE
    return Disk(vdev=usb_device(number), target=device.target or "", format=device.format, access=access)

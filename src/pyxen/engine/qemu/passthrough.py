"""Devices of the host, and USB devices, in a QEMU: what it is told of them, at the start and while it runs.

What they stand on is opened here and handed over: a USB device's node and an image as fd sets, a connection as a
socket. Only PCI devices are opened by QEMU itself, whose user is given the right to (``engine.passthrough.vfio``).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass

from pyxen.config.model import (
    DomainConfig,
    PciDevice,
    UsbDevice,
    UsbType,
    pci_device,
    usb_device,
    usb_numbers,
)
from pyxen.engine.contract import DomainSpec
from pyxen.engine.descriptors import Descriptors
from pyxen.engine.layers import Drive, block_nodes, node_name, node_words, open_drives
from pyxen.engine.passthrough import redir, usb
from pyxen.engine.passthrough.tree import HostTree
from pyxen.engine.qemu.disks import device_words
from pyxen.engine.qemu.drives import free_drive, open_drive
from pyxen.engine.qemu.qmp import Session
from pyxen.engine.qemu.slots import USB, address
from pyxen.errors import PyxenError

PORTS = 15
"""Of the controller; a device's port is its number plus one."""


@dataclass(frozen=True, slots=True)
class Opened:
    """What one USB device stands on, as QEMU can be told of it."""

    drive: Drive | None = None
    node: str | None = None
    """The name under which QEMU opens the host's device."""
    socket: int | None = None
    """A connection to who has it."""


def controller(spec: DomainSpec) -> dict[str, object]:
    """The USB controller of a laid-out spec, as QMP's device_add takes it: xHCI, for USB 1 to 3."""
    return {"driver": "qemu-xhci", "id": USB, "p2": PORTS, "p3": PORTS, **address(spec.config, spec.slots, USB)}


def pci_host_device(spec: DomainSpec, device: PciDevice) -> dict[str, object]:
    """A PCI device of the host in a laid-out spec, as QMP's device_add takes it."""
    name = pci_device(device.address)
    return {"driver": "vfio-pci", "id": name, "host": device.address, **address(spec.config, spec.slots, name)}


def usb_words(number: int, device: UsbDevice, opened: Opened) -> dict[str, object]:
    """A USB device as QMP's device_add takes it."""
    place = {"id": usb_device(number), "bus": f"{USB}.0", "port": str(number + 1)}
    match device.type:
        case UsbType.DISK:
            assert opened.drive is not None
            return {"driver": "usb-storage", **place, "drive": node_name(opened.drive), "removable": True}
        case UsbType.REDIR:
            return {"driver": "usb-redir", **place, "chardev": usb_device(number)}
        case UsbType.HOST:
            assert opened.node is not None
            return {"driver": "usb-host", **place, "hostdevice": opened.node}


def open_usb(config: DomainConfig, descriptors: Descriptors, tree: HostTree) -> list[Opened]:
    """Open what all USB devices of a description stand on, for a QEMU that is about to start. Raises PyxenError."""
    found = []
    for number, device in zip(usb_numbers(config.usbdev), config.usbdev, strict=True):
        match device.type:
            case UsbType.DISK:
                (drive,) = open_drives([usb.as_disk(number, device)], descriptors)
                found.append(Opened(drive=drive))
            case UsbType.REDIR:
                found.append(Opened(socket=descriptors.take(redir.connect(device.peer or ""))))
            case UsbType.HOST:
                found.append(Opened(node=descriptors.add_set(usb.open_device(tree, device))))
    return found


def arguments(spec: DomainSpec, opened: list[Opened]) -> list[str]:
    """QEMU's words for the controller, all USB devices and all PCI devices of a laid-out spec."""
    words: list[str] = []
    if USB in spec.slots:
        words += ["-device", device_words(controller(spec))]
    config = spec.config
    for number, device, found in zip(usb_numbers(config.usbdev), config.usbdev, opened, strict=True):
        if found.drive is not None:
            for node in block_nodes(found.drive):
                words += ["-blockdev", node_words(node)]
        if found.socket is not None:
            words += ["-chardev", f"socket,id={usb_device(number)},fd={found.socket}"]
        words += ["-device", device_words(usb_words(number, device, found))]
    for each in config.pci:
        words += ["-device", device_words(pci_host_device(spec, each))]
    return words


async def add_controller(monitor: Session, spec: DomainSpec) -> None:
    """Plug in the USB controller of a laid-out spec."""
    await monitor.execute("device_add", controller(spec))


async def add_pci(monitor: Session, device: PciDevice, spec: DomainSpec) -> None:
    """Plug in a PCI device of the host, which QEMU may open."""
    await monitor.execute("device_add", pci_host_device(spec, device))


async def add_usb(monitor: Session, number: int, device: UsbDevice, tree: HostTree) -> None:
    """Plug in a USB device. Raises PyxenError; then nothing of it is left."""
    await free_usb(monitor, number)
    try:
        opened = await _open(monitor, number, device, tree)
        await monitor.execute("device_add", usb_words(number, device, opened))
    except BaseException:
        await free_usb(monitor, number)
        raise


async def _open(monitor: Session, number: int, device: UsbDevice, tree: HostTree) -> Opened:
    name = usb_device(number)
    match device.type:
        case UsbType.DISK:
            return Opened(drive=await open_drive(monitor, usb.as_disk(number, device)))
        case UsbType.REDIR:
            fd = await asyncio.to_thread(redir.connect, device.peer or "")
            try:
                await monitor.execute("getfd", {"fdname": name}, fd=fd)
            finally:
                os.close(fd)
            backend = {"addr": {"type": "fd", "data": {"str": name}}, "server": False}
            await monitor.execute("chardev-add", {"id": name, "backend": {"type": "socket", "data": backend}})
            return Opened()
        case UsbType.HOST:
            fd = await asyncio.to_thread(usb.open_device, tree, device)
            try:
                added = await monitor.execute("add-fd", {"opaque": name}, fd=fd)
            finally:
                os.close(fd)
            return Opened(node=f"/dev/fdset/{added['fdset-id']}")


async def free_usb(monitor: Session, number: int) -> None:
    """Let go of what a USB device stood on that isn't there (any more), if there is such a thing."""
    name = usb_device(number)
    with contextlib.suppress(PyxenError):
        await monitor.execute("chardev-remove", {"id": name})
    await free_drive(monitor, name)
    for each in await monitor.execute("query-fdsets"):
        if any(_opaque(fd) == name for fd in each["fds"]):
            with contextlib.suppress(PyxenError):
                await monitor.execute("remove-fd", {"fdset-id": each["fdset-id"]})


def _opaque(fd: Mapping[str, object]) -> object:
    return fd.get("opaque")

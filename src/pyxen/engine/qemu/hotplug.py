"""Disks and network cards that come and go while a QEMU runs.

Files and taps are opened here and handed over, as at the start: QEMU's user may not be allowed to. What a device stood
on (its block nodes with their fd sets, its netdev) is freed when the guest has let the device go, and not before.
"""

from __future__ import annotations

import asyncio
import contextlib

from pyxen.config.model import Disk, Vif, device_usb, device_vif, vif_device
from pyxen.engine.contract import DomainSpec, StartedInfo
from pyxen.engine.descriptors import Descriptors
from pyxen.engine.forwards import slirp_words
from pyxen.engine.layers import node_name
from pyxen.engine.qemu.argv import card
from pyxen.engine.qemu.disks import disk_device
from pyxen.engine.qemu.drives import free_drive, limit, open_drive
from pyxen.engine.qemu.networks import open_network
from pyxen.engine.qemu.passthrough import free_usb
from pyxen.engine.qemu.qmp import Session
from pyxen.engine.qemu.slots import can_be_plugged, drive_bus
from pyxen.errors import PyxenError, Unsupported


def check_pluggable(spec: DomainSpec, device: str) -> None:
    """Raises Unsupported where a device of a laid-out spec can't come and go while the domain runs."""
    config = spec.config
    disk = next((disk for disk in config.disk if disk.vdev == device), None)
    if disk is not None and drive_bus(config, disk) != "virtio":
        raise Unsupported(
            f"disk {disk.vdev}: nothing can be plugged into IDE or SATA, or out of it, while a domain runs",
            hint="Call it xvdb, xvdc, … to have it on virtio; xm cd-insert changes a CD-ROM drive's disc.",
        )
    if not can_be_plugged(spec, device):
        raise Unsupported(
            f"{device} of '{config.name}' is on a bus of q35 (hdtype=ahci) into which nothing can be plugged, "
            "or out of it, while a domain runs",
            hint="From their domain's start, disks, virtio cards and devices of the host are in ports, where there are "
            "ports left and no slot was asked for.",
        )


async def add_disk(monitor: Session, disk: Disk, spec: DomainSpec) -> None:
    """Plug in a disk of the laid-out ``spec``. Raises PyxenError; then nothing of it is left."""
    await free(monitor, disk.vdev)
    try:
        drive = await open_drive(monitor, disk)
        await monitor.execute("device_add", disk_device(spec, drive))
        if disk.rate or disk.iops:
            await limit(monitor, disk, drive_bus(spec.config, disk))
    except BaseException:
        await free(monitor, disk.vdev)
        raise


async def change_disc(monitor: Session, disk: Disk) -> None:
    """Put ``disk``'s disc into its drive, in place of the one that is there; no target: leave it empty."""
    drive = {"id": disk.vdev}
    await monitor.execute("blockdev-open-tray", {**drive, "force": True})
    await monitor.execute("blockdev-remove-medium", drive)
    await free(monitor, disk.vdev)
    try:
        if disk.target:
            opened = await open_drive(monitor, disk)
            await monitor.execute("blockdev-insert-medium", {**drive, "node-name": node_name(opened)})
    except BaseException:
        await free(monitor, disk.vdev)
        raise
    finally:
        await monitor.execute("blockdev-close-tray", drive)


async def add_card(monitor: Session, number: int, vif: Vif, spec: DomainSpec, info: StartedInfo) -> None:
    """Plug in a network card of the laid-out ``spec``; forwards and warnings go into ``info``."""
    device = vif_device(number)
    await free(monitor, device)
    name = f"vif{number}"
    try:
        with Descriptors() as descriptors:
            if vif.bridge:
                await asyncio.to_thread(open_network, spec, number, vif, descriptors, info)
                await monitor.execute("getfd", {"fdname": name}, fd=descriptors.fds[0])
                netdev: dict[str, object] = {"type": "tap", "id": name, "fd": name}
            else:
                await asyncio.to_thread(open_network, spec, number, vif, descriptors, info)
                words = (word.removeprefix("hostfwd=") for word in slirp_words(vif.forward))
                netdev = {"type": "user", "id": name, "hostfwd": [{"str": word} for word in words]}
            await monitor.execute("netdev_add", netdev)
        await monitor.execute("device_add", card(spec, number, vif))
    except BaseException:
        await free(monitor, device)
        raise


async def remove(monitor: Session, device: str) -> None:
    """Ask the guest to let go of a device; does not wait for it."""
    try:
        await monitor.execute("device_del", {"id": device})
    except PyxenError as error:
        # The guest has been asked before, and has not answered yet.
        if "already in the process of unplug" not in error.message:
            raise


async def plugged(monitor: Session) -> set[str]:
    """The ids of all devices that have one."""
    found = await monitor.execute("qom-list", {"path": "/machine/peripheral"})
    return {each["name"] for each in found}


async def free(monitor: Session, device: str) -> None:
    """Let go of what a device stood on that isn't there (any more), if there is such a thing."""
    if (number := device_vif(device)) is not None:
        with contextlib.suppress(PyxenError):
            await monitor.execute("netdev_del", {"id": f"vif{number}"})
        return
    if (number := device_usb(device)) is not None:
        await free_usb(monitor, number)
        return
    await free_drive(monitor, device)

"""A domain's disks as QEMU sees them: the device that the guest meets.

The guest's names decide the bus. PVH: every disk is virtio-blk, in the order of the letters. HVM: ``hd`` is the
machine's own IDE or AHCI, ``sd`` an AHCI controller, ``xvd`` and ``vd`` virtio.
"""

from __future__ import annotations

from collections.abc import Mapping

from pyxen.config.model import DiskAccess, DiskType, DomainConfig, DomainType
from pyxen.engine.contract import DomainSpec
from pyxen.engine.layers import Drive, block_nodes, node_name, node_words
from pyxen.engine.qemu.slots import SATA, address, drive_bus, letter_index
from pyxen.errors import Unsupported


def check_disks(config: DomainConfig) -> list[str]:
    """Raises Unsupported for what the guest's buses don't have; returns warnings."""
    if config.type is DomainType.PVH:
        return [
            f"disk {disk.vdev}: a pvh domain has no empty CD-ROM drive, it is left out"
            for disk in config.disk
            if not disk.target
        ]
    ports = {"hd": 6 if config.hdtype == "ahci" else 4, "sd": 6}
    for disk in config.disk:
        bus = disk.vdev[:2]
        if bus in ports and letter_index(disk.vdev) >= ports[bus]:
            last = f"{bus}{'abcdef'[ports[bus] - 1]}"
            raise Unsupported(
                f"disk {disk.vdev}: there are {ports[bus]} such places, {bus}a to {last}",
                hint="Call it xvda, xvdb, … to have it on virtio.",
            )
        if bus in ports and disk.devtype is DiskType.DISK and disk.access is DiskAccess.READ:
            raise Unsupported(
                f"disk {disk.vdev}: IDE and SATA have no read-only disks",
                hint="Call it xvda, xvdb, … to have it on virtio, or attach it as a CD-ROM (hdc:cdrom).",
            )
    return []


def disk_arguments(spec: DomainSpec, drives: list[Drive], boot_index: dict[str, int]) -> list[str]:
    """QEMU's words for all disks of a laid-out spec; ``boot_index`` is by vdev."""
    arguments: list[str] = []
    config = spec.config
    pvh = config.type is DomainType.PVH
    if SATA in spec.slots:
        controller = {"driver": "ich9-ahci", "id": SATA, **address(config, spec.slots, SATA)}
        arguments += ["-device", device_words(controller)]
    for drive in sorted(drives, key=lambda drive: letter_index(drive.disk.vdev)):
        if not drive.layers and pvh:
            continue
        for node in block_nodes(drive):
            arguments += ["-blockdev", node_words(node)]
        device = disk_device(spec, drive)
        if (index := boot_index.get(drive.disk.vdev)) is not None:
            device["bootindex"] = index
        arguments += ["-device", device_words(device)]
    return arguments


def disk_device(spec: DomainSpec, drive: Drive) -> dict[str, object]:
    """The disk of a laid-out spec, as QMP's device_add takes it."""
    disk, config = drive.disk, spec.config
    index = letter_index(disk.vdev)
    bus = drive_bus(config, disk)
    device: dict[str, object] = {"id": disk.vdev}
    if bus == "virtio":
        device = {"driver": "virtio-blk-pci", **device, "serial": disk.vdev, **address(config, spec.slots, disk.vdev)}
    else:
        device = {"driver": "ide-cd" if disk.devtype is DiskType.CDROM else "ide-hd", **device}
        if bus == "ide" and config.hdtype == "ide":
            device |= {"bus": f"ide.{index // 2}", "unit": index % 2}
        else:
            device |= {"bus": f"ide.{index}" if bus == "ide" else f"{SATA}.{index % 6}"}
    if drive.layers:
        device["drive"] = node_name(drive)
    if disk.access is DiskAccess.WRITE_SHARED and disk.devtype is DiskType.DISK:
        device["share-rw"] = True
    return device


def device_words(device: Mapping[str, object]) -> str:
    """A device in the words of QEMU's ``-device``."""
    said = {True: "on", False: "off"}
    words = [f"{key}={said[value] if isinstance(value, bool) else value}" for key, value in device.items()]
    return ",".join([words[0].removeprefix("driver="), *words[1:]])

"""A domain's disks as QEMU sees them: the device that the guest meets.

The guest's names decide the bus. PVH: every disk is virtio-blk, in the order of the letters. HVM: ``hd`` is the
machine's own IDE or AHCI, ``sd`` an AHCI controller, ``xvd`` and ``vd`` virtio.
"""

from __future__ import annotations

from pyxen.config.model import Disk, DiskAccess, DiskType, DomainConfig, DomainType
from pyxen.engine.layers import Drive, block_nodes, node_name, node_words
from pyxen.errors import Unsupported


def letter_index(vdev: str) -> int:
    """0 for xvda, 25 for hdz, 26 for sdaa; a partition's number is of no account."""
    letters = vdev.rstrip("0123456789").removeprefix("x").removeprefix("vd").removeprefix("sd").removeprefix("hd")
    index = 0
    for letter in letters:
        index = index * 26 + ord(letter) - ord("a") + 1
    return index - 1


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


def disk_arguments(config: DomainConfig, drives: list[Drive], boot_index: dict[str, int]) -> list[str]:
    """QEMU's words for all disks; ``boot_index`` is by vdev."""
    arguments: list[str] = []
    pvh = config.type is DomainType.PVH
    if not pvh and any(_bus(config, drive.disk) == "sata" for drive in drives):
        arguments += ["-device", "ich9-ahci,id=sata"]
    for drive in sorted(drives, key=lambda drive: letter_index(drive.disk.vdev)):
        if not drive.layers and pvh:
            continue
        for node in block_nodes(drive):
            arguments += ["-blockdev", node_words(node)]
        device = _device(config, drive)
        if (index := boot_index.get(drive.disk.vdev)) is not None:
            device += f",bootindex={index}"
        arguments += ["-device", device]
    return arguments


def _bus(config: DomainConfig, disk: Disk) -> str:
    prefix = disk.vdev[:2]
    if config.type is DomainType.PVH or (prefix not in ("hd", "sd") and disk.devtype is DiskType.DISK):
        return "virtio"
    return "ide" if prefix == "hd" else "sata"


def _device(config: DomainConfig, drive: Drive) -> str:
    disk = drive.disk
    index = letter_index(disk.vdev)
    media = f",drive={node_name(drive)}" if drive.layers else ""
    share = ",share-rw=on" if disk.access is DiskAccess.WRITE_SHARED and disk.devtype is DiskType.DISK else ""
    bus = _bus(config, disk)
    if bus == "virtio":
        return f"virtio-blk-pci,id={disk.vdev},serial={disk.vdev}{media}{share}"
    if bus == "ide" and config.hdtype == "ide":
        place = f"bus=ide.{index // 2},unit={index % 2}"
    elif bus == "ide":
        place = f"bus=ide.{index}"
    else:
        place = f"bus=sata.{index % 6}"
    kind = "ide-cd" if disk.devtype is DiskType.CDROM else "ide-hd"
    return f"{kind},id={disk.vdev},{place}{media}{share}"

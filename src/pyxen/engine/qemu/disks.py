"""A domain's disks as QEMU sees them: opened files in layers, and the device that the guest meets.

The guest's names decide the bus. PVH: every disk is virtio-blk, in the order of the letters. HVM: ``hd`` is the
machine's own IDE or AHCI, ``sd`` an AHCI controller, ``xvd`` and ``vd`` virtio.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pyxen.config.model import Disk, DiskAccess, DiskFormat, DiskType, DomainConfig, DomainType
from pyxen.engine.qemu.descriptors import Descriptors
from pyxen.errors import ConfigError, EngineError, Unsupported

_QCOW2_MAGIC = b"QFI\xfb"
_BACKING_FORMAT = 0xE2792ACA  # header extension, QEMU's docs/interop/qcow2.txt
_END_OF_EXTENSIONS = 0
_LONGEST_NAME = 1023
_DEEPEST_CHAIN = 16


@dataclass(frozen=True, slots=True)
class Layer:
    """One image file that QEMU has been given."""

    filename: str
    format: str
    block_device: bool = False


@dataclass(frozen=True, slots=True)
class Drive:
    """A disk with its files opened, the guest's own layer first; no layers: a drive without a disc."""

    disk: Disk
    layers: tuple[Layer, ...]


def open_drives(config: DomainConfig, descriptors: Descriptors) -> list[Drive]:
    """Open every file of every disk. Raises EngineError or ConfigError naming the disk."""
    return [Drive(disk, tuple(_open_layers(disk, descriptors))) for disk in config.disk]


def _open_layers(disk: Disk, descriptors: Descriptors) -> Iterable[Layer]:
    path, format, writable = disk.target, disk.format.value, is_writable(disk)
    depth = 0
    while path:
        if depth == _DEEPEST_CHAIN:
            raise ConfigError(f"disk {disk.vdev}: more than {_DEEPEST_CHAIN} layers below {disk.target}", key="disk")
        try:
            block_device = stat.S_ISBLK(Path(path).stat().st_mode)
            yield Layer(descriptors.open(path, writable=writable), format, block_device)
            below = _backing(path) if format == DiskFormat.QCOW2.value else None
        except OSError as error:
            raise EngineError(f"disk {disk.vdev}: cannot open {path}: {error.strerror}") from error
        if below is None:
            return
        path, format = below
        writable = False
        depth += 1


def _backing(path: str) -> tuple[str, str] | None:
    """Path and format of the image below a qcow2 one; None if it stands alone. Raises ConfigError, OSError."""
    with Path(path).open("rb") as file:
        header = file.read(4096)
        if header[:4] != _QCOW2_MAGIC:
            raise ConfigError(f"{path} is not a qcow2 image", key="disk", hint="Is it raw? Say format=raw.")
        offset, length = int.from_bytes(header[8:16], "big"), int.from_bytes(header[16:20], "big")
        if not offset or not length:
            return None
        name = os.fsdecode(_piece(file, offset, length)) if length <= _LONGEST_NAME else ""
        if not name or "\0" in name:
            raise ConfigError(f"{path} is damaged: the name of its backing file can't be one", key="disk")
    format = _backing_format(header)
    if format not in ("raw", "qcow2") or name.startswith("json:"):
        raise ConfigError(
            f"{path} does not say what its backing file {name} is",
            key="disk",
            hint=f"Write it down: qemu-img rebase -u -b {name} -F FORMAT {path}",
        )
    return str(Path(path).parent / name.removeprefix("file:")), format


def _piece(file: BinaryIO, offset: int, length: int) -> bytes:
    """``length`` bytes from ``offset``, fewer where the file ends before."""
    if offset > file.seek(0, os.SEEK_END):
        return b""
    file.seek(offset)
    return file.read(length)


def _backing_format(header: bytes) -> str | None:
    """The header's extensions: type and length of 32 bits each, the data padded to 8 bytes."""
    version = int.from_bytes(header[4:8], "big")
    at = int.from_bytes(header[100:104], "big") if version >= 3 else 72
    while at + 8 <= len(header):
        kind = int.from_bytes(header[at : at + 4], "big")
        length = int.from_bytes(header[at + 4 : at + 8], "big")
        if kind == _END_OF_EXTENSIONS:
            return None
        if kind == _BACKING_FORMAT:
            return header[at + 8 : at + 8 + length].decode("ascii", "replace")
        at += 8 + (length + 7) // 8 * 8
    return None


def is_writable(disk: Disk) -> bool:
    return disk.access is not DiskAccess.READ and disk.devtype is DiskType.DISK


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
        for number, layer in reversed(list(enumerate(drive.layers))):
            arguments += ["-blockdev", _blockdev(drive, number, layer)]
        device = _device(config, drive)
        if (index := boot_index.get(drive.disk.vdev)) is not None:
            device += f",bootindex={index}"
        arguments += ["-device", device]
    return arguments


def _node(drive: Drive, number: int) -> str:
    return f"{drive.disk.vdev}.{number}"


def _blockdev(drive: Drive, number: int, layer: Layer) -> str:
    writable = number == 0 and is_writable(drive.disk)
    words = [
        f"driver={layer.format}",
        f"node-name={_node(drive, number)}",
        f"read-only={'off' if writable else 'on'}",
        f"file.driver={'host_device' if layer.block_device else 'file'}",
        f"file.filename={layer.filename}",
    ]
    if writable:
        words += ["discard=unmap", "file.discard=unmap"]
    if layer.format == DiskFormat.QCOW2.value and number + 1 < len(drive.layers):
        words.append(f"backing={_node(drive, number + 1)}")
    return ",".join(words)


def _bus(config: DomainConfig, disk: Disk) -> str:
    prefix = disk.vdev[:2]
    if config.type is DomainType.PVH or (prefix not in ("hd", "sd") and disk.devtype is DiskType.DISK):
        return "virtio"
    return "ide" if prefix == "hd" else "sata"


def _device(config: DomainConfig, drive: Drive) -> str:
    disk = drive.disk
    index = letter_index(disk.vdev)
    media = f",drive={_node(drive, 0)}" if drive.layers else ""
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

"""A disk's image files, opened layer by layer, and QEMU's description of each as a block node."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pyxen.config.model import Disk, DiskAccess, DiskFormat, DiskType
from pyxen.engine.descriptors import Descriptors
from pyxen.errors import ConfigError, EngineError

_QCOW2_MAGIC = b"QFI\xfb"
_BACKING_FORMAT = 0xE2792ACA  # header extension, QEMU's docs/interop/qcow2.txt
_END_OF_EXTENSIONS = 0
_LONGEST_NAME = 1023
_DEEPEST_CHAIN = 16


@dataclass(frozen=True, slots=True)
class Layer:
    """One image file, under the name by which QEMU opens it."""

    filename: str
    format: str
    block_device: bool = False


@dataclass(frozen=True, slots=True)
class Drive:
    """A disk with its files opened, the guest's own layer first; no layers: a drive without a disc."""

    disk: Disk
    layers: tuple[Layer, ...]


def open_drives(disks: Iterable[Disk], descriptors: Descriptors) -> list[Drive]:
    """Open every file of every disk. Raises EngineError or ConfigError naming the disk."""
    return [Drive(disk, tuple(_open_layers(disk, descriptors))) for disk in disks]


def _open_layers(disk: Disk, descriptors: Descriptors) -> Iterable[Layer]:
    path, format, writable = disk.target, disk.format.value, is_writable(disk)
    depth = 0
    while path:
        if depth == _DEEPEST_CHAIN:
            raise ConfigError(f"disk {disk.vdev}: more than {_DEEPEST_CHAIN} layers below {disk.target}", key="disk")
        try:
            block_device = stat.S_ISBLK(Path(path).stat().st_mode)
            yield Layer(descriptors.open(path, writable=writable), format, block_device)
            below = backing(path) if format == DiskFormat.QCOW2.value else None
        except OSError as error:
            raise EngineError(f"disk {disk.vdev}: cannot open {path}: {error.strerror}") from error
        if below is None:
            return
        path, format = below
        writable = False
        depth += 1


def backing(path: str) -> tuple[str, str] | None:
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


def node_name(drive: Drive, number: int = 0) -> str:
    """The block node of the drive's layer ``number``; 0 is what the guest sees."""
    return f"{drive.disk.vdev}.{number}"


def block_nodes(drive: Drive) -> Iterable[dict[str, str | bool]]:
    """The properties of each layer's block node (QMP's BlockdevOptions, flat: ``file.driver``), the lowest first."""
    for number, layer in reversed(list(enumerate(drive.layers))):
        writable = number == 0 and is_writable(drive.disk)
        node: dict[str, str | bool] = {
            "driver": layer.format,
            "node-name": node_name(drive, number),
            "read-only": not writable,
            "file.driver": "host_device" if layer.block_device else "file",
            "file.filename": layer.filename,
        }
        if writable:
            node |= {"discard": "unmap", "file.discard": "unmap"}
        if layer.format == DiskFormat.QCOW2.value and number + 1 < len(drive.layers):
            node["backing"] = node_name(drive, number + 1)
        yield node


def node_words(node: Mapping[str, str | bool]) -> str:
    """The same node in the words of QEMU's ``-blockdev``."""
    said = {True: "on", False: "off"}
    return ",".join(f"{key}={said[value] if isinstance(value, bool) else value}" for key, value in node.items())

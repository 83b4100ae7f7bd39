"""A snapshot's files, and a domain's disks where snapshots touch them. Blocking.

STATE/snapshots/UUID/NAME/            one snapshot of the domain of that UUID; its name is the moment it counts from
    state                             memory and devices, as xm save writes them (``saved``)
    xvda, xvdb, …                     copies of the writable disks, by vdev
    variables                         UEFI variables, if it has any
    snapshot.json                     Description
STATE/snapshots/UUID/.…               one in the making, or a clone's; a starting xend removes it
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

import msgspec

from pyxen.config.model import DiskAccess
from pyxen.engine.layers import is_writable
from pyxen.errors import InvalidRequest, ResourceExhausted, Unsupported
from pyxen.xend import saved
from pyxen.xend.belongings import root_layer, variables
from pyxen.xend.copies import copy_disk, sync_folder
from pyxen.xend.life import Life
from pyxen.xend.registry import Live
from pyxen.xend.store import Record

VERSION = 1
STATE, VARIABLES, DESCRIPTION = "state", "variables", "snapshot.json"


class DiskCopy(msgspec.Struct, frozen=True, kw_only=True):
    """A disk, and the file of its vdev's name that has what was on it."""

    vdev: str
    format: str
    path: str
    """The disk itself."""
    root: bool
    """The domain's layer over its image: it goes by the domain's name."""
    length: int


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """snapshot.json."""

    version: int
    name: str
    domain: str
    uuid: str
    created_at: float
    disks: tuple[DiskCopy, ...]
    variables: bool = False


def sweep(life: Life) -> None:
    """Remove what an earlier xend has left half made. Blocking."""
    for folder in life.roots.snapshots.glob("*/.*"):
        discard(folder)


def check(folder: Path, description: Description, *, head_only: bool = False) -> saved.Head:
    """Read all of the state before anything is done with it; its head. Blocking. Raises InvalidRequest, NotFound."""
    head, start = saved.read_head(folder / STATE)
    if not head_only:
        saved.read_state(folder / STATE, start, lambda _piece: None)
    for disk in description.disks:
        copy = folder / disk.vdev
        if not copy.is_file() or copy.stat().st_size != disk.length:
            raise InvalidRequest(
                f"the snapshot '{description.name}' of '{description.domain}' is damaged: "
                f"{copy} is not what was copied",
                hint=f"It is of no use: xm snapshot rm {description.domain} {description.name}",
            )
    return head


def read(folder: Path) -> Description | None:
    """None for what no snapshot is, or one of a newer pyxen."""
    try:
        found = msgspec.json.decode((folder / DESCRIPTION).read_bytes(), type=Description)
    except (OSError, msgspec.DecodeError):
        return None
    return found if found.version <= VERSION else None


def writable_disks(record: Record, live: Live, life: Life) -> list[DiskCopy]:
    """What is to be copied. Raises Unsupported for a disk that can't be."""
    image = record.config.image
    layer = str(root_layer(record.name, image, life.roots)) if image else None
    found = []
    for disk in live.spec.config.disk:
        if not disk.target or not is_writable(disk):
            continue
        why = None
        if disk.access is DiskAccess.WRITE_SHARED:
            why = "other domains may write to it (w!)"
        elif not Path(disk.target).is_file():
            why = "it is a device"
        if why:
            raise Unsupported(
                f"disk {disk.vdev} of '{record.name}' ({disk.target}) can't be in a snapshot: {why}",
                hint="Files, raw or qcow2, can; read-only disks are left as they are.",
            )
        found.append(
            DiskCopy(
                vdev=disk.vdev,
                format=disk.format.value,
                path=disk.target,
                root=disk.target == layer,
                length=0,
            )
        )
    return found


def make(part: Path) -> int:
    """The folder of one in the making, with the state's file; that one's descriptor."""
    try:
        discard(part)
        part.mkdir(mode=0o700, parents=True)
        part.parent.parent.chmod(0o700)
        return os.open(part / STATE, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ResourceExhausted(f"cannot make {part}: {error.strerror}") from error


def discard(folder: Path) -> None:
    """Remove a snapshot: it loses its name first, so that no half of one is ever taken for a whole."""
    hidden = folder if folder.name.startswith(".") else folder.with_name(f".{folder.name}.gone")
    with contextlib.suppress(OSError):
        if hidden != folder:
            folder.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)
    with contextlib.suppress(OSError):
        folder.parent.rmdir()  # the domain's last one


def moves_back(
    record: Record, folder: Path, description: Description, head: saved.Head, life: Life
) -> list[tuple[Path, Path, str]]:
    """For a revert: each copy, the file it is to replace, and its format."""
    moves = []
    for disk in description.disks:
        image = head.config.image
        own = disk.root and image is not None
        target = root_layer(record.name, image, life.roots) if own and image else Path(disk.path)
        moves.append((folder / disk.vdev, target, disk.format))
    if description.variables:
        moves.append((folder / VARIABLES, variables(record.name, life.roots), "raw"))
    return moves


def _beside(target: Path) -> Path:
    return target.with_name(f".{target.name}.revert")


def copy_beside(moves: list[tuple[Path, Path, str]]) -> None:
    """Make all copies; none is left if one can't be made."""
    try:
        for copy, target, format in moves:
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            beside = _beside(target)
            beside.unlink(missing_ok=True)
            copy_disk(copy, beside, format)
            with contextlib.suppress(FileNotFoundError):
                found = target.stat()
                os.chown(beside, found.st_uid, found.st_gid)
                beside.chmod(found.st_mode & 0o7777)
    except BaseException as error:
        for _, target, _ in moves:
            with contextlib.suppress(OSError):
                _beside(target).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise ResourceExhausted(f"a disk can't be put back: {error}") from error
        raise


def put_in_place(moves: list[tuple[Path, Path, str]]) -> None:
    try:
        for _, target, _ in moves:
            _beside(target).replace(target)
            sync_folder(target.parent)
    except OSError as error:
        raise ResourceExhausted(f"a disk can't be put back: {error}") from error

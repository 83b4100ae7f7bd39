"""What a domain needs on the host that it goes to, said on one side and looked for on the other. Blocking."""

from __future__ import annotations

import contextlib
import os
import uuid as uuids
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from pyxen.config.model import Disk, DiskAccess, DiskFormat, DomainConfig
from pyxen.engine.contract import Engine
from pyxen.engine.layers import backing, is_writable
from pyxen.errors import PyxenError
from pyxen.xend.life import Life
from pyxen.xend.migration.wire import PROTOCOL, Fact, Offer
from pyxen.xend.prepare import check_memory

_CPUINFO = Path("/proc/cpuinfo")
_TOKEN = ".pyxen-migration-"
_SHARED = "share its folder between the hosts, at the same path, or copy the disk: --copy-disks"


def cpu_flags(accelerator: str, cpuinfo: Path = _CPUINFO) -> list[str]:
    """The features of this host's CPU that a guest may use: none where QEMU makes them up."""
    if accelerator != "kvm":
        return []
    for line in cpuinfo.read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "flags":
            return sorted(value.split())
    return []


@contextlib.contextmanager
def files(disks: Sequence[Disk], *, copy: bool = False) -> Iterator[list[Fact]]:
    """The files of these disks, each with a token beside it for as long as the other side looks.

    ``copy``: those that aren't shared are to be copied, where they can be.
    """
    made: dict[Path, str] = {}
    try:
        yield [_copyable(disk, _fact(disk, made)) if copy else _fact(disk, made) for disk in disks if disk.target]
    finally:
        for path in made.values():
            Path(path).unlink(missing_ok=True)


def _fact(disk: Disk, made: dict[Path, str]) -> Fact:
    path = Path(disk.target)
    folder = path.parent
    if not path.is_block_device() and folder not in made:
        token = folder / f"{_TOKEN}{uuids.uuid4().hex}"
        with contextlib.suppress(OSError):  # a folder that can't be written to: by path and size alone
            os.close(os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            made[folder] = str(token)
    return Fact(f"disk {disk.vdev}", str(path), _size(path), is_writable(disk), made.get(folder), disk.vdev)


def _copyable(disk: Disk, fact: Fact) -> Fact:
    """With what is needed to make a copy, of a file that only this domain writes to. Raises OSError, ConfigError."""
    path = Path(disk.target)
    if not fact.writable or disk.access is DiskAccess.WRITE_SHARED or not path.is_file() or fact.token is None:
        return fact
    size, allocated = fact.size, path.stat().st_blocks * 512
    if disk.format is DiskFormat.QCOW2:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(32)[24:], "big")  # QEMU's docs/interop/qcow2.txt
        layer: str | None = disk.target
        while layer is not None and (below := backing(layer)) is not None:
            allocated += Path(below[0]).stat().st_blocks * 512
            layer = below[0] if below[1] == DiskFormat.QCOW2.value else None
    return msgspec.structs.replace(fact, format=disk.format.value, size=size, allocated=allocated)


def copies(offer: Offer) -> list[Fact]:
    """The disks that must be made here and filled."""
    return [fact for fact in offer.files if fact.format and not _shared(fact)]


def _shared(fact: Fact) -> bool:
    return fact.token is not None and Path(fact.token).exists()


def _size(path: Path) -> int:
    """Bytes, of a block device too. Raises OSError."""
    with path.open("rb") as file:
        return file.seek(0, os.SEEK_END)


def problems(offer: Offer, life: Life) -> list[str]:
    """Why the domain can't come here, one line each with what it is about in front; none: it can."""
    found: list[tuple[str, str]] = []
    if offer.protocol != PROTOCOL:
        found.append(("pyxen", f"speaks version {PROTOCOL} of the migration protocol, not {offer.protocol}"))
    config = offer.head.config
    found += _names(config, life)
    engine = next((each for each in life.engines if each.name == offer.head.engine), None)
    if engine is None:
        found.append(("engine", f"there is no engine {offer.head.engine}"))
    else:
        found += _engine(offer, engine)
    with _noting("memory", found):
        check_memory(config)
    if config.image is not None:
        with _noting("image", found):
            life.images.get(config.image)
    new = copies(offer)
    for fact in offer.files:
        found += [(fact.what, why) for why in (_new_file(fact, life) if fact in new else _file(fact))]
    found += [("disks", why) for why in _space(new, life)]
    return [f"{what:<10} {why}" for what, why in found]


@contextlib.contextmanager
def _noting(what: str, found: list[tuple[str, str]]) -> Iterator[None]:
    try:
        yield
    except PyxenError as error:
        found.append((what, error.message))


def _names(config: DomainConfig, life: Life) -> list[tuple[str, str]]:
    record = life.registry.records.get(config.uuid or "")
    if record is not None:
        return [] if record.domid is None else [("uuid", f"domain '{record.name}' has it, and is running")]
    found: list[tuple[str, str]] = []
    with _noting("name", found):
        life.records.check_free(config.name, config.uuid)
    return found


def _engine(offer: Offer, engine: Engine) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    with _noting("engine", found):
        info = engine.info()
        if not info.available:
            return [("engine", f"{engine.name} can't be used: {info.reason}")]
        engine.check(offer.head.config)
        accelerator = engine.accelerator(offer.head.config)
        if accelerator != offer.accelerator:
            return [("engine", f"it would run on {accelerator} here, its state is {offer.accelerator}'s")]
        if missing := sorted(set(offer.cpu_flags) - set(cpu_flags(accelerator))):
            return [("cpu", f"lacks {' '.join(missing)}")]
    return found


def _new_file(fact: Fact, life: Life) -> Iterator[str]:
    path = Path(fact.path)
    if path.exists() or path.is_symlink():
        yield f"{path} is there already, and is another file than the one there; move it away"
    elif path.parent != life.roots.disks and not os.access(path.parent, os.W_OK | os.X_OK):
        yield f"the folder {path.parent} is not there, or can't be written to; make it"


def _space(new: Sequence[Fact], life: Life) -> Iterator[str]:
    """What all copies in one file system take must be free there."""
    needed: dict[int, tuple[Path, int]] = {}
    for fact in new:
        folder = Path(fact.path).parent
        if not folder.is_dir():
            folder = life.roots.state
        device = folder.stat().st_dev
        needed[device] = (folder, needed.get(device, (folder, 0))[1] + fact.allocated)
    for folder, size in needed.values():
        found = os.statvfs(folder)
        free = found.f_bavail * found.f_frsize
        if size > free:
            yield f"{folder} has {free >> 20} MiB free, the copies take {size >> 20} MiB"


def _file(fact: Fact) -> Iterator[str]:
    path = Path(fact.path)
    try:
        size = _size(path)
    except OSError as error:
        yield f"{fact.path}: {error.strerror}; {_SHARED}"
        return
    if fact.token is not None and not _shared(fact):
        yield f"{fact.path} is another file than the one there; {_SHARED}"
    elif not fact.format and size != fact.size:
        yield f"{fact.path} has {size} bytes, not {fact.size}"
    elif fact.writable and not os.access(path, os.W_OK):
        yield f"{fact.path} can't be written to"

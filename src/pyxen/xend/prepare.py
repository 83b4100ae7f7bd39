"""From what a user asked for to what an engine can start: files found, kernels unpacked, nothing left open.

Blocking; xend calls it in a thread. Raises PyxenError before anything of the domain exists.
"""

from __future__ import annotations

import re
import secrets
import stat
import uuid as uuids
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from pyxen import api
from pyxen.config.model import (
    Disk,
    DiskAccess,
    DiskFormat,
    DiskType,
    DomainConfig,
    DomainType,
    UsbDevice,
    UsbType,
    Vif,
    command_line,
    usb_numbers,
)
from pyxen.engine.contract import DomainSpec
from pyxen.engine.passthrough import usb, vfio
from pyxen.engine.passthrough.tree import HostTree
from pyxen.errors import ConfigError, Conflict, NotFound, ResourceExhausted
from pyxen.image.kernel import unpack
from pyxen.image.store import ImageStore
from pyxen.paths import Roots
from pyxen.xend.belongings import root_layer, tpm_state
from pyxen.xend.host import read_memory
from pyxen.xend.uefi import own_variables

XEN_OUI = (0x00, 0x16, 0x3E)


def complete(config: DomainConfig) -> DomainConfig:
    """The same description with a UUID and with a MAC for each vif, so that both stay for the domain's whole life."""
    return msgspec.structs.replace(
        config,
        uuid=config.uuid or str(uuids.uuid4()),
        vif=tuple(vif if vif.mac else msgspec.structs.replace(vif, mac=make_mac()) for vif in config.vif),
    )


def make_mac() -> str:
    """A random address below Xen's prefix; the fourth byte stays under 0x80 as Xen's own tools have it."""
    tail = secrets.token_bytes(3)
    return ":".join(f"{byte:02x}" for byte in (*XEN_OUI, tail[0] & 0x7F, tail[1], tail[2]))


@dataclass(frozen=True, slots=True)
class Prepared:
    """What :func:`prepare` made of a description."""

    spec: DomainSpec
    warnings: list[str]
    made: list[Path]
    """Files that did not exist before, to be removed if the domain can't be started."""


def prepare(
    config: DomainConfig,
    *,
    roots: Roots,
    images: ImageStore,
    running: Sequence[DomainSpec],
    tree: HostTree,
) -> Prepared:
    """Resolve ``config`` (with UUID and MACs) into a spec whose ``domid`` and ``uid`` are still to be filled in."""
    assert config.uuid is not None, "complete() comes first"
    warnings: list[str] = []
    made: list[Path] = []
    image = images.get(config.image) if config.image else None
    try:
        check_memory(config)
        disks = [settle_disk(disk, warnings) for disk in config.disk]
        if image is not None and image.root_disk:
            disks = _root_disk(config, image, disks, roots, images, made)
        usbdev = settle_usb(config.name, config.usbdev, tree, running, warnings)
        check_sharing(config.name, [*disks, *usb_disks(usbdev)], running)
        vfio.check_free(tree, config.name, config.pci, running)
        check_macs(config.vif, running)
        kernel, ramdisk, cmdline = _boot_files(config, image, roots)
        spec = DomainSpec(
            domid=0,
            uuid=config.uuid,
            config=msgspec.structs.replace(config, disk=tuple(disks), usbdev=tuple(usbdev)),
            kernel=kernel,
            ramdisk=ramdisk,
            cmdline=cmdline,
            nvram=own_variables(config, roots, made),
            tpm=_tpm(config, roots, made),
        )
    except BaseException:
        for path in made:
            path.unlink(missing_ok=True)
        raise
    return Prepared(spec, warnings, made)


def check_memory(config: DomainConfig) -> None:
    """Refuse what can't ever fit; raises ResourceExhausted with both figures."""
    if config.hugepages is not None:
        return  # not taken from what is free: the engine has looked into the host's pool
    available = read_memory().get("MemAvailable", 0)
    if config.memory > available:
        raise ResourceExhausted(
            f"'{config.name}' wants {config.memory} MiB of memory, but only {available} MiB are free",
            hint="Give it less (memory=…), or shut a domain down.",
        )


def settle_disk(disk: Disk, warnings: list[str]) -> Disk:
    """The same disk with its format settled; raises where its file can't be one."""
    if not disk.target:
        if disk.devtype is DiskType.CDROM:
            return msgspec.structs.replace(disk, format=DiskFormat.RAW)
        raise ConfigError(f"disk {disk.vdev} names no file", key="disk", hint="For example: file:/srv/a.img,xvda,w")
    path = Path(disk.target)
    writable = disk.access is not DiskAccess.READ
    try:
        found = path.stat()
        with path.open("r+b" if writable else "rb") as file:
            magic = file.read(4) if stat.S_ISREG(found.st_mode) else b""
    except FileNotFoundError:
        raise NotFound(f"disk {disk.vdev}: {path} does not exist") from None
    except IsADirectoryError:
        raise ConfigError(f"disk {disk.vdev}: {path} is a folder, not an image", key="disk") from None
    except OSError as error:
        raise ConfigError(
            f"disk {disk.vdev}: cannot open {path} for {'writing' if writable else 'reading'}: {error.strerror}",
            key="disk",
        ) from None
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISBLK(found.st_mode)):
        raise ConfigError(f"disk {disk.vdev}: {path} is neither a file nor a block device", key="disk")
    if stat.S_ISREG(found.st_mode) and found.st_size == 0:
        raise ConfigError(
            f"disk {disk.vdev}: {path} is empty", key="disk", hint=f"Make it some size: truncate -s 1G {path}"
        )
    format = disk.format
    if format is DiskFormat.AUTO:
        # By the name, never by the content: a guest that may write a raw disk could write a qcow2 header with a
        # backing file of its choice into it.
        format = DiskFormat.QCOW2 if path.suffix in (".qcow2", ".qcow") else DiskFormat.RAW
        if format is DiskFormat.RAW and magic == b"QFI\xfb":
            warnings.append(f"disk {disk.vdev}: {path} is used as raw but looks like qcow2; say format=qcow2 if it is")
    if format is DiskFormat.QCOW2:
        _check_qcow2(disk.vdev, path, found.st_size)
    return msgspec.structs.replace(disk, target=str(path.resolve()), format=format)


def settle_usb(
    name: str, devices: Sequence[UsbDevice], tree: HostTree, running: Iterable[DomainSpec], warnings: list[str]
) -> list[UsbDevice]:
    """The domain's USB devices with the host's found and the images' formats settled. Raises PyxenError."""
    settled = []
    for number, device in zip(usb_numbers(devices), usb.settle(tree, name, devices, running), strict=True):
        if device.type is UsbType.DISK:
            disk = settle_disk(usb.as_disk(number, device), warnings)
            device = msgspec.structs.replace(device, target=disk.target, format=disk.format)
        settled.append(device)
    return settled


def usb_disks(devices: Sequence[UsbDevice]) -> list[Disk]:
    """All USB disks among these."""
    numbered = zip(usb_numbers(devices), devices, strict=True)
    return [usb.as_disk(number, device) for number, device in numbered if device.type is UsbType.DISK]


def _check_qcow2(vdev: str, path: Path, size: int) -> None:
    """Refuse an image whose header is wrong or points behind its end (layout: QEMU's docs/interop/qcow2.txt)."""
    with path.open("rb") as file:
        header = file.read(72)
    if len(header) < 72 or header[:4] != b"QFI\xfb":
        raise ConfigError(f"disk {vdev}: {path} is not a qcow2 image", key="disk", hint="Is it raw? Say format=raw.")
    l1_entries = int.from_bytes(header[36:40], "big")
    l1_offset = int.from_bytes(header[40:48], "big")
    refcounts = int.from_bytes(header[48:56], "big")
    if l1_offset + 8 * l1_entries > size or refcounts >= size:
        raise ConfigError(
            f"disk {vdev}: {path} is cut off: its tables lie behind its end at {size} bytes",
            key="disk",
            hint=f"See what is left of it: qemu-img check {path}",
        )


def _identity(path: str) -> tuple[int, int] | None:
    """What two names of one disk share: the device number, or the file system and inode."""
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return (-1, found.st_rdev) if stat.S_ISBLK(found.st_mode) else (found.st_dev, found.st_ino)


def check_sharing(name: str, disks: Iterable[Disk], running: Iterable[DomainSpec]) -> None:
    """Xen's rule: writable by one alone, or read by many, unless ``w!`` says that the guests know how to share."""
    used: dict[tuple[int, int], list[tuple[str, Disk]]] = {}
    for spec in running:
        for disk in (*spec.config.disk, *usb_disks(spec.config.usbdev)):
            if disk.target and (identity := _identity(disk.target)):
                used.setdefault(identity, []).append((spec.config.name, disk))
    for disk in disks:
        if not disk.target or disk.access is DiskAccess.WRITE_SHARED or not (identity := _identity(disk.target)):
            continue
        for owner, other in used.get(identity, ()):
            if disk.access is DiskAccess.WRITE or other.access is not DiskAccess.READ:
                raise Conflict(
                    f"disk {disk.vdev} of '{name}': {disk.target} is in use by domain '{owner}' "
                    f"({other.vdev}, {other.access})",
                    hint="Mode w! shares a writable disk, for guests that know how to.",
                )
        used.setdefault(identity, []).append((name, disk))


def check_macs(vifs: Iterable[Vif], running: Iterable[DomainSpec]) -> None:
    """Two interfaces with one address on a bridge take each other's traffic."""
    taken = {vif.mac: spec.config.name for spec in running for vif in spec.config.vif if vif.bridge}
    for vif in vifs:
        if vif.bridge and vif.mac in taken:
            raise Conflict(f"MAC {vif.mac} is in use by domain '{taken[vif.mac]}'")


def _boot_files(config: DomainConfig, image: api.Image | None, roots: Roots) -> tuple[str | None, str | None, str]:
    kernel = config.kernel or (image.kernel if image else None)
    ramdisk = config.ramdisk
    if ramdisk is None and image is not None and config.kernel is None:
        ramdisk = image.ramdisk
    if config.cmdline is None and image is not None and config.kernel is None:
        config = msgspec.structs.replace(config, cmdline=f"{image.cmdline} {_hostname(config)}".strip())
    if ramdisk is not None:
        _check_readable("ramdisk", ramdisk)
    if kernel is None:
        return None, ramdisk, command_line(config)
    _check_readable("kernel", kernel)
    if config.type is DomainType.PVH:
        unpacked = unpack(Path(kernel), roots.kernels)
        if unpacked.pvh_entry is None:
            raise ConfigError(
                f"kernel {kernel} has no PVH entry point (built without CONFIG_PVH)",
                key="kernel",
                hint="Use another kernel, or type=hvm.",
            )
        kernel = str(unpacked.vmlinux)
    return kernel, ramdisk, command_line(config)


def _hostname(config: DomainConfig) -> str:
    """The kernel's own parameter (since Linux 5.19), where the domain's name can be a host's."""
    words = f"{config.root} {config.extra}".split()
    if any(word.startswith("hostname=") for word in words) or not re.fullmatch("[A-Za-z0-9-]{1,63}", config.name):
        return ""
    return f"hostname={config.name}"


def _check_readable(what: str, path: str) -> None:
    try:
        with Path(path).open("rb"):
            pass
    except FileNotFoundError:
        raise NotFound(f"{what} {path} does not exist") from None
    except OSError as error:
        raise ConfigError(f"cannot read {what} {path}: {error.strerror}", key=what) from None


def _root_disk(
    config: DomainConfig,
    image: api.Image,
    disks: list[Disk],
    roots: Roots,
    images: ImageStore,
    made: list[Path],
) -> list[Disk]:
    """The disks with, as the first, the domain's own writable layer over the image's root disk."""
    first = "xvda" if config.type is DomainType.PVH else "vda"
    if any(disk.vdev in ("xvda", "vda", "sda", "hda") for disk in disks):
        return disks
    layer = root_layer(config.name, image.name, roots)
    roots.disks.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = not layer.exists()
    images.overlay(image, layer)
    if fresh:
        made.append(layer)
    return [Disk(vdev=first, target=str(layer), format=DiskFormat.QCOW2), *disks]


def _tpm(config: DomainConfig, roots: Roots, made: list[Path]) -> str | None:
    """The file that the domain's TPM keeps its state in; empty before its first start."""
    if config.type is not DomainType.HVM or not config.tpm:
        return None
    path = tpm_state(config.name, roots)
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
        made.append(path)
    return str(path)

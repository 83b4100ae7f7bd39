"""What must hold between the keys of a description, over and above each key's own type and range."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import chain

from pyxen.config import cpulist
from pyxen.config.model import (
    Disk,
    DiskAccess,
    DiskFormat,
    DiskType,
    DomainConfig,
    DomainType,
    Firmware,
    UsbDevice,
    UsbType,
    Vif,
    command_line,
)
from pyxen.config.words import cut, shown
from pyxen.errors import ConfigError

DOMAIN_0 = "Domain-0"
_DOMAIN_0_UUID = "00000000-0000-0000-0000-000000000000"
_COMMAND_LINE = 2047
"""Characters that Linux keeps of its command line on x86."""
_IDE = re.compile(r"hd[e-z]|hd[a-z]{2}")
_HVM_ONLY = (
    "firmware",
    "secure_boot",
    "tpm",
    "viridian",
    "boot",
    "hdtype",
    "vnc",
    "vncdisplay",
    "vnclisten",
    "vga",
    "serial",
    "usbdevice",
    "localtime",
    "usb",
)
_USB_PARTS = {
    UsbType.HOST: ("hostbus", "hostaddr", "vendor", "product"),
    UsbType.REDIR: ("peer",),
    UsbType.DISK: ("target", "format", "readonly"),
}


def check(config: DomainConfig) -> list[str]:
    """Warnings about ``config``. Raises ConfigError, with ``key``, for what can't be."""
    _identity(config)
    _amounts(config)
    _boot(config)
    _secure_boot(config)
    _disks(config)
    _vifs(config)
    _once("p9", "The tag {} is already defined", (share.tag for share in config.p9))
    for share in config.p9:
        _absolute(f"p9 {share.tag}", share.path, key="p9")
    _host_devices(config)
    _address("vnclisten", config.vnclisten)
    warnings = (_boot_warnings, _cpu_warnings, _type_warnings, _disk_warnings, _net_warnings)
    return list(chain.from_iterable(each(config) for each in warnings))


def _identity(config: DomainConfig) -> None:
    if config.name == DOMAIN_0:
        raise ConfigError(f"the name {DOMAIN_0} is the host's own", key="name", hint="choose another name")
    if config.uuid == _DOMAIN_0_UUID:
        raise ConfigError(f"the uuid {_DOMAIN_0_UUID} is Domain-0's", key="uuid", hint="leave uuid out to get one")


def _amounts(config: DomainConfig) -> None:
    if config.maxmem is not None and config.maxmem < config.memory:
        raise ConfigError(
            f"maxmem ({config.maxmem} MiB) must not be less than memory ({config.memory} MiB)", key="maxmem"
        )
    if config.min_memory is not None and config.min_memory > config.memory:
        raise ConfigError(
            f"min_memory ({config.min_memory} MiB) must not be more than memory ({config.memory} MiB)", key="min_memory"
        )
    page = {None: 1, "2m": 2, "1g": 1024}[config.hugepages]
    if (most := max(config.memory, config.maxmem or 0)) % page:
        raise ConfigError(f"{most} MiB of memory are no whole number of huge pages of {page} MiB", key="hugepages")
    if config.maxvcpus is not None and config.maxvcpus < config.vcpus:
        raise ConfigError(f"maxvcpus ({config.maxvcpus}) must not be less than vcpus ({config.vcpus})", key="maxvcpus")
    most = 100 * max(config.vcpus, config.maxvcpus or 0)
    if config.cpu_cap > most:
        raise ConfigError(
            f"Cpu cap out of range, valid range is from 0 to {most} for specified number of vcpus", key="cpu_cap"
        )
    for key, lists in (("cpus", config.cpus), ("cpus_soft", config.cpus_soft)):
        for text in lists:
            cpulist.parse(text, key)


def _boot(config: DomainConfig) -> None:
    for key, path in (("kernel", config.kernel), ("ramdisk", config.ramdisk)):
        _absolute(key, path or "/")
    if config.type is DomainType.PVH and not config.kernel and not config.image:
        raise ConfigError(
            "a pvh domain needs a kernel or an image",
            key="kernel",
            hint='write kernel = "/boot/vmlinuz" or image = "tiny"; type = "hvm" boots from a disk',
        )


def _secure_boot(config: DomainConfig) -> None:
    if config.secure_boot and config.type is DomainType.HVM:
        if config.firmware is not Firmware.UEFI:
            raise ConfigError("secure_boot is a matter of UEFI", key="secure_boot", hint='write firmware = "uefi"')
        if config.hdtype != "ahci":
            raise ConfigError(
                "secure_boot needs the machine that can guard its variables (q35)",
                key="secure_boot",
                hint='write hdtype = "ahci"',
            )


def _disks(config: DomainConfig) -> None:
    _once("disk", "The device {} is already defined", (disk.vdev for disk in config.disk))
    _once("disk", "The file {} is already used", (disk.target for disk in config.disk if disk.target))
    whole = {disk.vdev for disk in config.disk}
    for disk in config.disk:
        _disk(disk, config.type)
        parent = disk.vdev.rstrip("0123456789")
        if parent != disk.vdev and parent in whole:
            raise ConfigError(f"disk {disk.vdev} is a partition of {parent}, which is a disk of its own", key="disk")


def _disk(disk: Disk, kind: DomainType) -> None:
    _absolute(f"disk {disk.vdev}", disk.target or "/", key="disk")
    if disk.devtype is DiskType.CDROM:
        if disk.access is not DiskAccess.READ:
            raise ConfigError(f"disk {disk.vdev}: a CD-ROM can't be written to", key="disk", hint="write access=ro")
    elif not disk.target:
        raise ConfigError(f"disk {disk.vdev}: the file or device to attach is missing", key="disk")
    if kind is DomainType.HVM:
        if disk.vdev[-1].isdigit():
            raise ConfigError(
                f"disk {disk.vdev}: an HVM domain has whole disks only",
                key="disk",
                hint=f"attach it as {disk.vdev.rstrip('0123456789')}",
            )
        if _IDE.match(disk.vdev):
            raise ConfigError(
                f"disk {disk.vdev}: an HVM domain has hda to hdd", key="disk", hint="call further disks xvda, xvdb, …"
            )


def _vifs(config: DomainConfig) -> None:
    _once("vif", "The mac {} is already defined", (vif.mac for vif in config.vif if vif.mac))
    _once("vif", "The devid {} is already defined", (str(vif.devid) for vif in config.vif if vif.devid is not None))
    _once("vif", "The vifname {} is already defined", (vif.vifname for vif in config.vif if vif.vifname))
    forwards = [forward for vif in config.vif for forward in vif.forward]
    ports = (f"{forward.protocol} {forward.address}:{forward.host}" for forward in forwards)
    _once("vif", "The port {} is already forwarded", ports)
    for forward in forwards:
        _address("vif", forward.address)
    for vif in config.vif:
        _vif(vif)


def _vif(vif: Vif) -> None:
    if vif.mac and (int(vif.mac[:2], 16) & 1 or vif.mac == "00:00:00:00:00:00"):
        raise ConfigError(
            f"the mac {vif.mac} can't be an interface's own address", key="vif", hint="Xen's begin with 00:16:3e"
        )
    if vif.bridge and vif.forward:
        raise ConfigError(
            f"a vif on the bridge {vif.bridge} can't forward ports",
            key="vif",
            hint="leave out bridge=: forwards lead into a user-mode network",
        )


def _host_devices(config: DomainConfig) -> None:
    for key, there in (("pci", config.pci), ("usbdev", config.usbdev)):
        if there and config.type is not DomainType.HVM:
            raise ConfigError(
                f"{key}: a pvh domain has neither PCI devices of the host nor USB",
                key=key,
                hint='type = "hvm" has them, on QEMU',
            )
    _once("pci", "The PCI device {} is already given", (device.address for device in config.pci))
    _once("pci", "The slot {} is already taken", (f"{device.vslot:x}" for device in config.pci if device.vslot))
    _once(
        "usbdev", "The devid {} is already defined", (str(usb.devid) for usb in config.usbdev if usb.devid is not None)
    )
    targets = [disk.target for disk in config.disk if disk.target] + [usb.target for usb in config.usbdev if usb.target]
    _once("usbdev", "The file {} is already used", targets)
    for usb in config.usbdev:
        _usb(usb)


def _usb(usb: UsbDevice) -> None:
    usual = UsbDevice(type=usb.type)
    for kind, parts in _USB_PARTS.items():
        odd = [part for part in parts if getattr(usb, part) != getattr(usual, part)]
        if kind is not usb.type and odd:
            raise ConfigError(f"usbdev: {odd[0]} means nothing for one of type {usb.type}", key="usbdev")
    said = tuple(part for part in _USB_PARTS[UsbType.HOST] if getattr(usb, part) is not None)
    if usb.type is UsbType.HOST and said not in (("hostbus", "hostaddr"), ("vendor", "product")):
        raise ConfigError(
            "usbdev: a device of the host is named by hostbus and hostaddr, or by vendor and product", key="usbdev"
        )
    if usb.type is UsbType.REDIR and usb.peer is None:
        raise ConfigError("usbdev: redir needs HOST:PORT or unix:PATH", key="usbdev")
    if usb.type is UsbType.DISK:
        _absolute("usbdev", usb.target or "", key="usbdev")


def _boot_warnings(config: DomainConfig) -> Iterator[str]:
    if config.type is DomainType.HVM and not (config.kernel or config.image):
        idle = [key for key in ("ramdisk", "cmdline", "root", "extra") if getattr(config, key)]
        if idle:
            yield f"{', '.join(idle)}: no effect without a kernel or an image"
        if not config.disk and "n" not in config.boot:
            yield "there is nothing to boot from: no disk, kernel or image, and no n in boot"
    length = len(command_line(config).encode())
    if length > _COMMAND_LINE:
        yield f"the kernel's command line has {length} bytes; Linux keeps {_COMMAND_LINE}"


def _cpu_warnings(config: DomainConfig) -> Iterator[str]:
    for key, lists in (("cpus", config.cpus), ("cpus_soft", config.cpus_soft)):
        if 1 < len(lists) < config.vcpus:
            yield f"{key} has lists for {len(lists)} of {config.vcpus} VCPUs; the others may run anywhere"
        elif len(lists) > max(config.vcpus, config.maxvcpus or 0, 1):
            yield f"{key} has {len(lists)} lists, more than the domain can have VCPUs"


def _type_warnings(config: DomainConfig) -> Iterator[str]:
    if config.type is DomainType.PVH:
        usual = DomainConfig(name=config.name)
        for key in _HVM_ONLY:
            if getattr(config, key) != getattr(usual, key):
                yield f"{key} has an effect on hvm domains only"
        if any(vif.model for vif in config.vif):
            yield "model= of a vif has an effect on hvm domains only"
    elif config.firmware is Firmware.UEFI and config.kernel:
        yield "firmware is not used where a kernel is given"


def _disk_warnings(config: DomainConfig) -> Iterator[str]:
    for disk in config.disk:
        if disk.format is DiskFormat.RAW and disk.target.endswith(".qcow2"):
            yield f"disk {disk.vdev} is attached as raw, but is named {shown(disk.target)}; for qcow2 write tap:qcow2:"


def _net_warnings(config: DomainConfig) -> Iterator[str]:
    if config.vnc and config.vnclisten != "127.0.0.1" and config.type is DomainType.HVM:
        yield f"VNC listens on {config.vnclisten} without a password"


def _once(key: str, message: str, values: Iterable[str]) -> None:
    seen: set[str] = set()
    for value in values:
        if value in seen:
            raise ConfigError(message.format(f'"{cut(value)}"'), key=key)
        seen.add(value)


def _absolute(what: str, path: str, key: str | None = None) -> None:
    if not path.startswith("/"):
        raise ConfigError(f"{what}: {shown(path)} must be an absolute path", key=key or what)


def _address(key: str, address: str) -> None:
    """IPv4 in four decimal parts. ipaddress would do, but costs start-up time."""
    parts = address.split(".")
    if len(parts) != 4 or not all(part.isdecimal() and int(part) < 256 and str(int(part)) == part for part in parts):
        raise ConfigError(f"{key}: {shown(address)} is no IPv4 address", key=key, hint="write four numbers: 127.0.0.1")

"""What a domain should be: the typed model behind every configuration file and API body.

Decoding by msgspec checks types and ranges; :mod:`pyxen.config.check` then checks what spans several
fields. Keys keep the names of xmdomain.cfg(5) and xl.cfg(5).

Patterns end in ``$(?!\\n)``: Python's ``$`` alone would let a trailing newline through, and ``\\Z`` means nothing to
the readers of the JSON schema.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from itertools import count
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

NAME_PATTERN = r"^[A-Za-z0-9_:+][A-Za-z0-9_.:+-]*$(?!\n)"
TAG_PATTERN = r"^[A-Za-z0-9_.-]{1,31}$(?!\n)"
UUID_PATTERN = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$(?!\n)"
INTERFACE_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}$(?!\n)"
IPV4_PATTERN = r"^[0-9.]{7,15}$(?!\n)"
VDEV_PATTERN = r"^(xvd|sd|hd|vd)[a-z]{1,2}[0-9]{0,3}$(?!\n)"
CPUS_PATTERN = r"^[a-z0-9:,^-]+$(?!\n)"
BOOT_PATTERN = r"^[acdn]{0,4}$(?!\n)"
MAC_PATTERN = r"^[0-9a-f]{2}(:[0-9a-f]{2}){5}$(?!\n)"
PCI_PATTERN = r"^[0-9a-f]{4,8}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]$(?!\n)"
USB_ID_PATTERN = r"^[0-9a-f]{4}$(?!\n)"
PEER_PATTERN = r"^(unix:/[^\x00,]{1,107}|[A-Za-z0-9_.-]{1,253}:[0-9]{1,5}|\[[0-9A-Fa-f:.]{2,45}\]:[0-9]{1,5})$(?!\n)"

POOL_0 = "Pool-0"
"""The CPU pool that there is anyway."""
Name = Annotated[str, Meta(pattern=NAME_PATTERN, min_length=1, max_length=64, description="unique name")]
Path = Annotated[str, Meta(min_length=1, max_length=4096, pattern=r"^[^\x00]+$")]
Text = Annotated[str, Meta(max_length=4096, pattern=r"^[^\x00]*$")]
Mib = Annotated[int, Meta(ge=1, le=16 * 1024 * 1024, description="in MiB")]
VcpuCount = Annotated[int, Meta(ge=1, le=512)]
CpuList = Annotated[str, Meta(max_length=1024, pattern=CPUS_PATTERN, description="0-3,^1, all or nodes:0")]
CpuLists = Annotated[tuple[CpuList, ...], Meta(max_length=512)]
CpuWeight = Annotated[int, Meta(ge=1, le=65535)]
IoWeight = Annotated[int, Meta(ge=1, le=10000)]
CpuCap = Annotated[int, Meta(ge=0, le=51200, description="in percent of one CPU, 0: none")]
EmulatedUsb = Annotated[str, Meta(pattern=r"^(tablet|mouse|keyboard)$(?!\n)")]
Port = Annotated[int, Meta(ge=1, le=65535)]


class DomainType(StrEnum):
    """How a guest meets its machine."""

    PVH = "pvh"
    HVM = "hvm"


class Action(StrEnum):
    """What xend does with a domain that has stopped."""

    DESTROY = "destroy"
    RESTART = "restart"
    PRESERVE = "preserve"
    RENAME_RESTART = "rename-restart"
    COREDUMP_DESTROY = "coredump-destroy"
    COREDUMP_RESTART = "coredump-restart"


class EngineChoice(StrEnum):
    AUTO = "auto"
    XEN = "xen"
    QEMU = "qemu"


class Accelerator(StrEnum):
    AUTO = "auto"
    KVM = "kvm"
    TCG = "tcg"


class Firmware(StrEnum):
    BIOS = "bios"
    UEFI = "uefi"


class DiskFormat(StrEnum):
    RAW = "raw"
    QCOW2 = "qcow2"
    AUTO = "auto"


class DiskAccess(StrEnum):
    """``r`` read-only, ``w`` writable by one domain alone, ``w!`` writable though others have it too."""

    READ = "r"
    WRITE = "w"
    WRITE_SHARED = "w!"


class DiskType(StrEnum):
    DISK = "disk"
    CDROM = "cdrom"


class Disk(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A virtual block device (vbd)."""

    vdev: Annotated[str, Meta(pattern=VDEV_PATTERN, description="xvda, hda, sda, vda, …")]
    target: Annotated[str, Meta(max_length=4096, pattern=r"^[^\x00]*$")] = ""
    """Host path of the image or device; empty only for a CD-ROM drive without a disc."""
    format: DiskFormat = DiskFormat.AUTO
    access: DiskAccess = DiskAccess.WRITE
    devtype: DiskType = DiskType.DISK
    rate: Annotated[int, Meta(ge=1, le=10**12, description="bytes per second, read and written")] | None = None
    iops: Annotated[int, Meta(ge=1, le=10**9, description="requests per second")] | None = None


class Forward(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A port of the host (loopback, unless ``address`` says otherwise) that leads into a user-mode network."""

    host: Port
    guest: Port
    protocol: Annotated[str, Meta(pattern=r"^(tcp|udp)$(?!\n)")] = "tcp"
    address: Annotated[str, Meta(pattern=IPV4_PATTERN)] = "127.0.0.1"


PARAVIRTUAL_MODELS = ("virtio", "virtio-net", "netfront")


class Vif(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A virtual network interface: on a bridge where one is named, else on a user-mode network."""

    mac: Annotated[str, Meta(pattern=MAC_PATTERN)] | None = None
    """None: xend makes one below 00:16:3e, stable for the domain's life."""
    bridge: Annotated[str, Meta(pattern=INTERFACE_PATTERN)] | None = None
    vifname: Annotated[str, Meta(pattern=INTERFACE_PATTERN)] | None = None
    rate: Annotated[int, Meta(ge=1, le=10**12, description="bytes per second")] | None = None
    model: Annotated[str, Meta(pattern=r"^[A-Za-z0-9-]{1,32}$(?!\n)")] | None = None
    """Emulated card of an HVM domain (e1000, rtl8139, …); None: virtio."""
    forward: Annotated[tuple[Forward, ...], Meta(max_length=256)] = ()
    devid: Annotated[int, Meta(ge=0, le=255, description="its number among the domain's interfaces")] | None = None
    """None: the lowest that no other has."""

    @property
    def paravirtual(self) -> bool:
        """Is it no emulated card, by its ``model``?"""
        return self.model in (None, *PARAVIRTUAL_MODELS)


class Share(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A folder of the host that the guest mounts by 9p."""

    tag: Annotated[str, Meta(pattern=TAG_PATTERN, description="what the guest mounts it by")]
    path: Annotated[str, Meta(min_length=1, max_length=4096, pattern=r"^[^\x00\n,]+$(?!\n)")]
    """The folder's absolute path on the host."""
    readonly: bool = False


class PciDevice(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A PCI device of the host that the guest has to itself, by VFIO."""

    address: Annotated[str, Meta(pattern=PCI_PATTERN, description="domain:bus:slot.function, such as 0000:03:00.0")]
    vslot: Annotated[int, Meta(ge=1, le=31, description="its slot on the guest's bus")] | None = None
    """None: a free one."""
    seize: bool = False
    """Take it from its driver if it hasn't been made assignable before."""


class UsbType(StrEnum):
    """What is behind a USB device of a guest: a device of the host, a connection by usbredir, or a disk's image."""

    HOST = "host"
    REDIR = "redir"
    DISK = "disk"


class UsbDevice(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A USB device that the guest has on its controller. What of it means something depends on its type."""

    type: UsbType
    hostbus: Annotated[int, Meta(ge=1, le=255)] | None = None
    hostaddr: Annotated[int, Meta(ge=1, le=127)] | None = None
    """Where a host's device is plugged in now; it has another address each time."""
    vendor: Annotated[str, Meta(pattern=USB_ID_PATTERN)] | None = None
    product: Annotated[str, Meta(pattern=USB_ID_PATTERN)] | None = None
    """What it is, in four hexadecimal digits each: the first such device that nobody else has."""
    peer: Annotated[str, Meta(pattern=PEER_PATTERN)] | None = None
    """Who speaks usbredir: ``HOST:PORT`` or ``unix:PATH``."""
    target: Annotated[str, Meta(min_length=1, max_length=4096, pattern=r"^[^\x00]+$")] | None = None
    """The image of a disk."""
    format: DiskFormat = DiskFormat.AUTO
    readonly: bool = False
    """The guest can't write to the disk."""
    devid: Annotated[int, Meta(ge=0, le=14, description="its number among the domain's USB devices")] | None = None
    """None: the lowest that no other has."""


class DomainConfig(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """Everything a user may say of a domain."""

    name: Name
    uuid: Annotated[str, Meta(pattern=UUID_PATTERN)] | None = None
    description: Text = ""
    type: DomainType = DomainType.PVH
    engine: EngineChoice = EngineChoice.AUTO
    accel: Accelerator = Accelerator.AUTO
    """QEMU's accelerator; ``auto`` takes KVM where the probe passes, else TCG."""

    memory: Mib = 256
    maxmem: Mib | None = None
    min_memory: Mib | None = None
    """The least that xend leaves it while the host runs short; None: xend takes nothing from it."""
    hugepages: Annotated[str, Meta(pattern=r"^(2m|1g)$(?!\n)")] | None = None
    """Of what size its memory's pages are, from the host's pool; None: whatever the kernel finds."""
    memory_sharing: bool = False
    """Let the host keep pages with the same content once (KSM)."""
    vcpus: VcpuCount = 1
    """VCPUs online at start."""
    maxvcpus: VcpuCount | None = None
    cpus: CpuLists = ()
    """The host's CPUs that VCPUs may run on: one list for all, or one for each. Empty: any."""
    cpus_soft: CpuLists = ()
    """The same, where they should run rather than elsewhere. Linux has no such thing: it is kept and shown."""
    cpu_weight: CpuWeight = 256
    """The domain's share of busy CPUs, against the others' weights."""
    cpu_cap: CpuCap = 0
    """The most CPU time that it gets, also where CPUs are idle."""
    io_weight: IoWeight = 100
    """The domain's share of busy disks, against the others' weights."""

    pool: Name = POOL_0
    """The CPU pool that it runs in."""

    image: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$(?!\n)")] | None = None
    """An image of xend's store: its kernel, ramdisk, command line and root disk are the defaults."""
    kernel: Path | None = None
    ramdisk: Path | None = None
    cmdline: Text | None = None
    """The kernel's whole command line; ``root`` and ``extra`` are put after it."""
    root: Text = ""
    extra: Text = ""

    disk: Annotated[tuple[Disk, ...], Meta(max_length=64)] = ()
    vif: Annotated[tuple[Vif, ...], Meta(max_length=32)] = ()

    p9: Annotated[tuple[Share, ...], Meta(max_length=16)] = ()
    pci: Annotated[tuple[PciDevice, ...], Meta(max_length=30)] = ()
    usb: bool = False
    """Have a USB controller, also while nothing is plugged into it."""
    usbdev: Annotated[tuple[UsbDevice, ...], Meta(max_length=15)] = ()
    gdb: bool = False
    """Have a socket in the domain's folder that gdb can connect to, where the engine can."""

    on_poweroff: Action = Action.DESTROY
    on_reboot: Action = Action.RESTART
    on_crash: Action = Action.RESTART

    firmware: Firmware = Firmware.BIOS
    secure_boot: bool = False
    """UEFI starts only what is signed with a key that it knows; Microsoft's are there from the start."""
    tpm: bool = False
    """A TPM 2.0, whose state stays with the domain."""
    viridian: bool = False
    """Show the guest Hyper-V's enlightenments, which Windows expects of a hypervisor."""
    boot: Annotated[str, Meta(pattern=BOOT_PATTERN, description="a floppy, c disk, d CD-ROM, n network")] = "c"
    hdtype: Annotated[str, Meta(pattern=r"^(ide|ahci)$(?!\n)")] = "ide"
    vnc: bool = False
    vnclisten: Annotated[str, Meta(pattern=IPV4_PATTERN)] = "127.0.0.1"
    vncdisplay: Annotated[int, Meta(ge=0, le=59635)] | None = None
    """None: the first free one."""
    vga: Annotated[str, Meta(pattern=r"^(stdvga|cirrus|qxl|none)$(?!\n)")] = "stdvga"
    serial: Annotated[str, Meta(pattern=r"^(pty|none)$(?!\n)")] = "pty"
    usbdevice: Annotated[tuple[EmulatedUsb, ...], Meta(max_length=8)] = ()
    localtime: bool = False

    boot_timeout: Annotated[int, Meta(ge=0, le=86400, description="in seconds, 0: never")] = 60
    """The watchdog reports a domain that has printed nothing for this long after its start."""


def encode(config: DomainConfig) -> bytes:
    """The JSON that is stored and sent."""
    return msgspec.json.encode(config)


def vif_device(number: int) -> str:
    """The id of a network interface's device; a disk's is its vdev."""
    return f"nic{number}"


def device_vif(device: str) -> int | None:
    """The number of the network interface whose device has this id; None: it is a disk's."""
    number = device.removeprefix("nic")
    return int(number) if number != device and number.isdecimal() else None


def vif_numbers(vifs: Iterable[Vif]) -> list[int]:
    """The number of each interface, by which the guest and ``xm network-detach`` know it: ``devid``, or a free one."""
    return _numbers([vif.devid for vif in vifs])


def usb_numbers(devices: Iterable[UsbDevice]) -> list[int]:
    """The same of USB devices, for ``xm usb-detach``."""
    return _numbers([device.devid for device in devices])


def _numbers(given: list[int | None]) -> list[int]:
    free = (number for number in count() if number not in given)
    return [next(free) if each is None else each for each in given]


def pci_device(address: str) -> str:
    """The id of a host's PCI device in a guest's machine."""
    return f"pci-{address.replace(':', '-')}"


def device_pci(device: str) -> str | None:
    """The address of the host's PCI device with this id; None: it is something else's."""
    address = device.removeprefix("pci-")
    return address.replace("-", ":") if address != device else None


def usb_device(number: int) -> str:
    """The id of a USB device in a guest's machine."""
    return f"usb{number}"


def device_usb(device: str) -> int | None:
    """The number of the USB device with this id; None: it is something else's."""
    number = device.removeprefix("usb")
    return int(number) if number != device and number.isdecimal() else None


def vif_number(vifs: Sequence[Vif], vif: Vif) -> int:
    """The number of one of them."""
    return vif_numbers(vifs)[vifs.index(vif)]


def command_line(config: DomainConfig) -> str:
    """The kernel's command line, as xend builds it: ``cmdline``, then ``root=``, then ``extra``."""
    parts = [config.cmdline or ""]
    if config.root:
        parts.append(config.root if config.root.startswith("root=") else f"root={config.root}")
    parts.append(config.extra)
    return " ".join(part for part in parts if part)

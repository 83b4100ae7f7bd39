"""The keys of a domain's file: what each means, what it takes, and what a line with it looks like.

One table serves the reading of files (:mod:`pyxen.config.coerce`), the messages, the JSON schema's descriptions and
the reference page. A test holds it against :class:`pyxen.config.model.DomainConfig`.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class Kind(Enum):
    """How a value in a file becomes a value of the model."""

    TEXT = "text"
    WORD = "word"
    """Text where the empty string means *not set*."""
    PATH = "path"
    NUMBER = "number"
    MIB = "MiB"
    FLAG = "flag"
    WORDS = "words"
    DISKS = "disks"
    VIFS = "vifs"
    SHARES = "shares"
    PCIS = "pcis"
    USBS = "usbs"
    CPUS = "cpus"
    """Lists of the host's CPUs: one for all VCPUs, or one for each."""


class Key(NamedTuple):
    """One field of the model as a key of a file."""

    name: str
    group: str
    kind: Kind
    expects: str
    """What a value must be, to follow "must be" in a message."""
    summary: str
    example: str
    """A line for a file."""
    choices: tuple[str, ...] = ()


_ACTIONS = ("destroy", "restart", "preserve", "rename-restart", "coredump-destroy", "coredump-restart")
_MIB = "a number of MiB from 1 to 16777216"
_CPUS = "a list of CPUs such as '0-3,^1', or a list with one for each VCPU"
_COUNT = "a whole number from 1 to 512"

GENERAL, RESOURCES, BOOT, DEVICES, EVENTS, HVM = (
    "General",
    "Memory and VCPUs",
    "What boots",
    "Disks and networks",
    "When the domain stops",
    "HVM domains",
)

_TABLE = (
    Key(
        "name",
        GENERAL,
        Kind.TEXT,
        "1 to 64 letters, digits or any of _ . : + - and may not start with . or -",
        "The domain's unique name. Without it, the file's name up to the last dot is taken.",
        'name = "web"',
    ),
    Key(
        "uuid",
        GENERAL,
        Kind.WORD,
        "32 hexadecimal digits in the groups 8-4-4-4-12",
        "The domain's UUID; xend makes one when there is none.",
        'uuid = "6c1c0fe2-1f6a-4b66-a6c1-2c2a1f0a4f11"',
    ),
    Key("description", GENERAL, Kind.TEXT, "text", "Free text.", 'description = "the web server"'),
    Key(
        "type",
        GENERAL,
        Kind.WORD,
        "one of pvh, hvm",
        "`pvh` boots a Linux kernel directly; `hvm` is a whole PC with firmware, for any system.",
        'type = "hvm"',
        ("pvh", "hvm"),
    ),
    Key(
        "engine",
        GENERAL,
        Kind.WORD,
        "one of auto, xen, qemu",
        "What runs the domain; `auto` takes what the machine is able to do.",
        'engine = "qemu"',
        ("auto", "xen", "qemu"),
    ),
    Key(
        "accel",
        GENERAL,
        Kind.WORD,
        "one of auto, kvm, tcg",
        "How QEMU runs the guest's code; `auto` takes KVM where it works.",
        'accel = "tcg"',
        ("auto", "kvm", "tcg"),
    ),
    Key("memory", RESOURCES, Kind.MIB, _MIB, "Memory at start, in MiB or with a unit.", "memory = 512"),
    Key("maxmem", RESOURCES, Kind.MIB, _MIB, "Most memory it may ever get; not set: `memory`.", 'maxmem = "2G"'),
    Key(
        "min_memory",
        RESOURCES,
        Kind.MIB,
        _MIB,
        "The least that xend leaves it while the host runs short of memory, where `balloon` is set in xend.toml; not "
        "set: xend takes nothing from it.",
        "min_memory = 64",
    ),
    Key(
        "hugepages",
        RESOURCES,
        Kind.WORD,
        "2m or 1g",
        "Its memory comes in huge pages of this size from the host's pool; not set: as the kernel sees fit.",
        'hugepages = "2m"',
        ("2m", "1g"),
    ),
    Key(
        "memory_sharing",
        RESOURCES,
        Kind.FLAG,
        "0 or 1",
        "Pages with the same content in several such domains are kept once, where the host's KSM runs. A guest can "
        "then find out, by timing, what pages the others have.",
        "memory_sharing = 1",
    ),
    Key("vcpus", RESOURCES, Kind.NUMBER, _COUNT, "VCPUs online at start.", "vcpus = 2"),
    Key("maxvcpus", RESOURCES, Kind.NUMBER, _COUNT, "Most VCPUs it may ever get; not set: `vcpus`.", "maxvcpus = 4"),
    Key(
        "cpus",
        RESOURCES,
        Kind.CPUS,
        _CPUS,
        "The host's CPUs that its VCPUs may run on: one list for all of them, or one for each; see *CPUs* below.",
        'cpus = "0-3,^1"',
    ),
    Key(
        "cpus_soft",
        RESOURCES,
        Kind.CPUS,
        _CPUS,
        "CPUs that they should prefer. Linux has no such preference: it is kept, and shown by `xm vcpu-list`.",
        'cpus_soft = ["0", "1"]',
    ),
    Key(
        "cpu_weight",
        RESOURCES,
        Kind.NUMBER,
        "a whole number from 1 to 65535",
        "Its share of busy CPUs: one with 512 gets twice as much as one with 256.",
        "cpu_weight = 512",
    ),
    Key(
        "cpu_cap",
        RESOURCES,
        Kind.NUMBER,
        "a percentage of one CPU from 0 (no limit) to 51200",
        "The most CPU time it gets, in percent of one CPU, also where CPUs are idle; 0: no limit.",
        "cpu_cap = 50",
    ),
    Key(
        "io_weight",
        RESOURCES,
        Kind.NUMBER,
        "a whole number from 1 to 10000",
        "Its share of busy disks of the host, by cgroup v2: one with 200 gets twice as much as one with 100.",
        "io_weight = 200",
    ),
    Key(
        "pool",
        RESOURCES,
        Kind.WORD,
        "a pool's name, such as xm cpupool-list shows",
        "The CPU pool that it runs in.",
        'pool = "fast"',
    ),
    Key(
        "image",
        BOOT,
        Kind.WORD,
        "up to 64 lower-case letters, digits or any of . _ -",
        "An image of xend's store; its kernel, ramdisk, command line and root disk are the defaults.",
        'image = "tiny"',
    ),
    Key("kernel", BOOT, Kind.PATH, "a path", "The kernel to boot: a vmlinux or a bzImage.", 'kernel = "/boot/vmlinuz"'),
    Key("ramdisk", BOOT, Kind.PATH, "a path", "The kernel's initial ramdisk.", 'ramdisk = "/boot/initrd.img"'),
    Key(
        "cmdline",
        BOOT,
        Kind.TEXT,
        "text of at most 4096 characters",
        "The kernel's command line; `root` and `extra` are put after it.",
        'cmdline = "console=hvc0 quiet"',
    ),
    Key(
        "root",
        BOOT,
        Kind.TEXT,
        "text of at most 4096 characters",
        "The root file system, for the command line's `root=`.",
        'root = "/dev/xvda1 ro"',
    ),
    Key(
        "extra",
        BOOT,
        Kind.TEXT,
        "text of at most 4096 characters",
        "More words for the kernel's command line.",
        'extra = "panic=1"',
    ),
    Key(
        "disk",
        DEVICES,
        Kind.DISKS,
        "a list of disks such as ['file:/srv/web.img,xvda,w']",
        "Block devices, one string each; see *Disks* below.",
        'disk = ["file:/srv/web.img,xvda,w"]',
    ),
    Key(
        "vif",
        DEVICES,
        Kind.VIFS,
        "a list of interfaces such as ['bridge=br0'] or ['']",
        "Network interfaces, one string each; see *Network interfaces* below.",
        'vif = ["forward=2222:22"]',
    ),
    Key(
        "p9",
        DEVICES,
        Kind.SHARES,
        "a list of folders such as ['tag=src,path=/srv/src']",
        "Folders of the host that the guest mounts by 9p, one string each; see *Folders* below.",
        'p9 = ["tag=src,path=/srv/src,readonly=1"]',
    ),
    Key(
        "pci",
        DEVICES,
        Kind.PCIS,
        "a list of the host's PCI devices such as ['0000:03:00.0']",
        "PCI devices of the host that an hvm domain has to itself, one string each; see *Devices of the host* below.",
        'pci = ["0000:03:00.0"]',
    ),
    Key(
        "usb",
        DEVICES,
        Kind.FLAG,
        "0 or 1",
        "A USB controller for an hvm domain, into which devices can be plugged later; `usbdev` brings it along.",
        "usb = 1",
    ),
    Key(
        "usbdev",
        DEVICES,
        Kind.USBS,
        "a list of USB devices such as ['host:046d:c077'] or ['disk:/srv/stick.img']",
        "USB devices of an hvm domain, one string each; see *Devices of the host* below.",
        'usbdev = ["host:046d:c077"]',
    ),
    Key(
        "gdb",
        DEVICES,
        Kind.FLAG,
        "0 or 1",
        "A socket to which gdb can connect (QEMU); `xm list --format json` says where.",
        "gdb = 1",
    ),
    Key(
        "on_poweroff",
        EVENTS,
        Kind.WORD,
        "one of " + ", ".join(_ACTIONS),
        "What to do when the guest powers off.",
        'on_poweroff = "preserve"',
        _ACTIONS,
    ),
    Key(
        "on_reboot",
        EVENTS,
        Kind.WORD,
        "one of " + ", ".join(_ACTIONS),
        "What to do when the guest reboots.",
        'on_reboot = "destroy"',
        _ACTIONS,
    ),
    Key(
        "on_crash",
        EVENTS,
        Kind.WORD,
        "one of " + ", ".join(_ACTIONS),
        "What to do when the guest crashes.",
        'on_crash = "coredump-destroy"',
        _ACTIONS,
    ),
    Key(
        "boot_timeout",
        EVENTS,
        Kind.NUMBER,
        "a whole number of seconds from 0 (never) to 86400",
        "Report a domain that has printed nothing for so many seconds after its start; 0: never.",
        "boot_timeout = 120",
    ),
    Key(
        "firmware",
        HVM,
        Kind.WORD,
        "one of bios, uefi",
        "The PC's firmware. `seabios` and `ovmf` are understood too.",
        'firmware = "uefi"',
        ("bios", "uefi"),
    ),
    Key(
        "secure_boot",
        HVM,
        Kind.FLAG,
        "0 or 1",
        "UEFI starts only what is signed with a key that the domain knows: at first Microsoft's, for Windows and most "
        "Linux systems. It is then `firmware=uefi` and `hdtype=ahci` unless something else is said.",
        "secure_boot = 1",
    ),
    Key("tpm", HVM, Kind.FLAG, "0 or 1", "A TPM 2.0 (by swtpm), whose state is kept for the domain.", "tpm = 1"),
    Key(
        "viridian",
        HVM,
        Kind.FLAG,
        "0 or 1",
        "Show Hyper-V's enlightenments: Windows then keeps time and locks with the hypervisor's help.",
        "viridian = 1",
    ),
    Key(
        "boot",
        HVM,
        Kind.TEXT,
        "up to four of the letters a (floppy), c (disk), d (CD-ROM), n (network)",
        "The order in which devices are tried: `a` floppy, `c` disk, `d` CD-ROM, `n` network.",
        'boot = "dc"',
    ),
    Key(
        "hdtype",
        HVM,
        Kind.WORD,
        "one of ide, ahci",
        "The controller for the disks called `hda`, `hdb`, …",
        'hdtype = "ahci"',
        ("ide", "ahci"),
    ),
    Key("vnc", HVM, Kind.FLAG, "0 or 1", "Show the screen by VNC.", "vnc = 1"),
    Key(
        "vnclisten",
        HVM,
        Kind.WORD,
        "an IPv4 address such as 127.0.0.1",
        "The address of the host on which VNC listens. There is no password: think before opening it.",
        'vnclisten = "192.168.1.10"',
    ),
    Key(
        "vncdisplay",
        HVM,
        Kind.NUMBER,
        "a whole number from 0 to 59635",
        "VNC's display: its port is 5900 more. Not set: the first free one.",
        "vncdisplay = 3",
    ),
    Key(
        "vga",
        HVM,
        Kind.WORD,
        "one of stdvga, cirrus, qxl, none",
        "The graphics card.",
        'vga = "cirrus"',
        ("stdvga", "cirrus", "qxl", "none"),
    ),
    Key(
        "serial",
        HVM,
        Kind.WORD,
        "one of pty, none",
        "The first serial port: `pty` is what `xm console` shows.",
        'serial = "none"',
        ("pty", "none"),
    ),
    Key(
        "usbdevice",
        HVM,
        Kind.WORDS,
        "one or a list of tablet, mouse, keyboard",
        "Emulated USB devices; a `tablet` makes VNC's pointer follow yours.",
        'usbdevice = ["tablet"]',
        ("tablet", "mouse", "keyboard"),
    ),
    Key("localtime", HVM, Kind.FLAG, "0 or 1", "The clock shows local time, not UTC.", "localtime = 1"),
)

KEYS: dict[str, Key] = {key.name: key for key in _TABLE}

PARTS: dict[str, str] = {
    "disk.vdev": "a device name such as xvda, hda, sda or vda",
    "disk.target": "a path",
    "disk.format": "one of raw, qcow2, auto",
    "disk.access": "one of r, w, w!",
    "disk.devtype": "one of disk, cdrom",
    "disk.rate": "a rate such as 10MB/s",
    "disk.iops": "a number of requests a second",
    "vif.mac": "six pairs of hexadecimal digits such as 00:16:3e:01:02:03",
    "vif.bridge": "an interface's name of at most 15 characters",
    "vif.vifname": "an interface's name of at most 15 characters",
    "vif.rate": "a rate such as 10MB/s",
    "vif.model": "a network card's name such as e1000",
    "vif.devid": "a number from 0 to 255",
    "vif.forward": "ports such as 2222:22 or udp:5353:53",
    "vif.forward.host": "a port from 1 to 65535",
    "vif.forward.guest": "a port from 1 to 65535",
    "vif.forward.protocol": "one of tcp, udp",
    "vif.forward.address": "an IPv4 address such as 127.0.0.1",
    "p9.tag": "1 to 31 letters, digits or any of _ . -",
    "p9.path": "a path without commas and line breaks",
    "p9.readonly": "true or false",
    "pci.address": "a PCI device's address such as 0000:03:00.0",
    "pci.vslot": "a slot from 1 to 31",
    "pci.seize": "true or false",
    "usbdev.type": "one of host, redir, disk",
    "usbdev.hostbus": "a bus from 1 to 255",
    "usbdev.hostaddr": "an address from 1 to 127",
    "usbdev.vendor": "four hexadecimal digits",
    "usbdev.product": "four hexadecimal digits",
    "usbdev.peer": "HOST:PORT or unix:PATH",
    "usbdev.target": "a path",
    "usbdev.format": "one of raw, qcow2, auto",
    "usbdev.readonly": "true or false",
    "usbdev.devid": "a number from 0 to 14",
}
"""What the parts of ``disk``, ``vif`` and their like must be, by their path in the model."""


def expected(path: str) -> str | None:
    """What the value at ``path`` (``memory``, ``disk.vdev``) must be, or None for a path nobody knows."""
    if key := KEYS.get(path):
        return key.expects
    return PARTS.get(path)


def reference_markdown() -> str:
    """The reference page of these keys, in Markdown."""
    from pyxen.config.reference import reference_markdown as page  # above this module, and for documentation only

    return page()

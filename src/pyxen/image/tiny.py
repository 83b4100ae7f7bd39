"""The image ``tiny``: Debian's cloud kernel and a ramdisk of busybox and the few modules a domain needs."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pyxen.image import ramdisk
from pyxen.image.debs import KernelFiles
from pyxen.image.files import write_file
from pyxen.image.modules import ModuleTree
from pyxen.image.recipe import FAST_START, Contents, Report

VERSION = 7
OPTIONS: Mapping[str, str] = {}
CMDLINE: Final = f"quiet {FAST_START}"

MODULES: Final = (
    *ramdisk.DISK_MODULES,
    "virtio_net",
    "virtio_console",
    "virtio_balloon",
    "virtio_rng",
    "xen_netfront",
    "pvpanic_pci",
    "pvpanic_mmio",
    "button",
    "evdev",
)

_FSTAB: Final = """\
proc /proc proc
sys /sys sysfs
dev /dev devtmpfs
run /run tmpfs
"""

# The password is "tiny"; its salt is fixed so that the ramdisk is the same wherever it is built.
_PASSWD: Final = "root:$5$pyxen$Bq2WPpky/As4wCEs21lgvd2EwYtT4r2OGtyCWFei0d9:0:0:root:/root:/bin/sh\n"

# The shell would take busybox's own commands, which wait for the shell to end.
_PROFILE: Final = """\
export ENV=/etc/profile PS1='\\h:\\w# '
alias poweroff=/sbin/poweroff halt=/sbin/halt reboot=/sbin/reboot
"""


def check(options: Mapping[str, str]) -> None:
    """Raises Unsupported if this host has no fitting busybox."""
    ramdisk.busybox()


def build(folder: Path, scratch: Path, kernel: KernelFiles, options: Mapping[str, str], report: Report) -> Contents:
    """Make ``vmlinuz`` and ``ramdisk``."""
    report("Making the ramdisk", 0.8)
    shutil.copyfile(kernel.vmlinuz, folder / "vmlinuz")
    write_file(folder / "ramdisk", [make_ramdisk(kernel.modules)])
    return Contents(kernel="vmlinuz", ramdisk="ramdisk", cmdline=CMDLINE)


def make_ramdisk(modules: ModuleTree, *, busybox: bytes | None = None) -> bytes:
    """The initial ramdisk, a cpio archive. ``busybox``: another one than this host's, for a kernel of another width."""
    archive = ramdisk.start("tiny-init", modules, MODULES, program=busybox)
    for name in ("poweroff", "halt", "reboot"):
        archive.file(f"sbin/{name}", ramdisk.script("stop"), 0o755)
    for name, (data, mode) in ramdisk.agent_files().items():
        archive.file(f"{ramdisk.AGENT_FOLDER}/{name}".lstrip("/"), data, mode)
    archive.file("sbin/hotplug", ramdisk.script("hotplug"), 0o755)
    archive.file("etc/dhcp", ramdisk.script("dhcp"), 0o755)
    for name, text in {
        "fstab": _FSTAB,
        "group": "root:x:0:\n",
        "issue": "",
        "passwd": _PASSWD,
        "profile": _PROFILE,
    }.items():
        archive.file(f"etc/{name}", text.encode())
    return archive.pack()

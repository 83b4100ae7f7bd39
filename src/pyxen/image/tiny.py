"""The image ``tiny``: Debian's cloud kernel and a ramdisk of busybox and the few modules a domain needs.

The ramdisk is not compressed: unpacking would cost the guest more time than reading costs the host.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Final

from pyxen.errors import Unsupported
from pyxen.image.command import need
from pyxen.image.cpio import Archive
from pyxen.image.debs import KernelFiles
from pyxen.image.files import write_file
from pyxen.image.modules import ModuleTree
from pyxen.image.recipe import Contents, Report

VERSION = 1
OPTIONS: Mapping[str, str] = {}
CMDLINE: Final = "quiet"

MODULES: Final = (
    "virtio_pci",
    "virtio_mmio",
    "virtio_blk",
    "virtio_net",
    "virtio_console",
    "virtio_balloon",
    "virtio_rng",
    "xen_blkfront",
    "xen_netfront",
    "pvpanic_pci",
    "pvpanic_mmio",
    "button",
    "evdev",
)
"""What a domain on either engine can have; those that a kernel has built in, or not at all, are left out."""

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
export ENV=/etc/profile PS1='tiny:\\w# '
alias poweroff=/sbin/poweroff halt=/sbin/halt reboot=/sbin/reboot
"""

_APPLETS: Final = ("sh", "mount", "login", "getty", "modprobe")
"""The names under which others than the shell look busybox up; the shell knows all applets by itself."""


def check(options: Mapping[str, str]) -> None:
    busybox()


def build(folder: Path, scratch: Path, kernel: KernelFiles, options: Mapping[str, str], report: Report) -> Contents:
    report("Making the ramdisk", 0.8)
    shutil.copyfile(kernel.vmlinuz, folder / "vmlinuz")
    write_file(folder / "ramdisk", [ramdisk(kernel.modules, busybox())])
    return Contents(kernel="vmlinuz", ramdisk="ramdisk", cmdline=CMDLINE)


def busybox() -> bytes:
    """The host's busybox. Raises Unsupported if there is none that runs without libraries."""
    path = Path(need("busybox"))
    data = path.read_bytes()
    if b"/ld-linux" in data[:4096]:
        raise Unsupported(f"{path} needs libraries", hint="Install the other one: apt-get install busybox-static")
    return data


def ramdisk(modules: ModuleTree, busybox: bytes) -> bytes:
    """The initial ramdisk, a cpio archive."""
    archive = Archive()
    for folder in ("dev", "etc", "mnt", "proc", "root", "run", "sys", "tmp"):
        archive.folder(folder)
    archive.character_device("dev/console", 5, 1)
    archive.file("bin/busybox", _without_cursor_query(busybox), 0o755)
    for applet in _APPLETS:
        archive.symlink(f"{'s' if applet in _SBIN else ''}bin/{applet}", "/bin/busybox")
    archive.file("init", script("tiny-init"), 0o755)
    for name in ("poweroff", "halt", "reboot"):
        archive.file(f"sbin/{name}", script("stop"), 0o755)
    archive.file("sbin/hotplug", script("hotplug"), 0o755)
    archive.file("etc/dhcp", script("dhcp"), 0o755)
    archive.file("etc/fstab", _FSTAB.encode())
    archive.file("etc/passwd", _PASSWD.encode())
    archive.file("etc/group", b"root:x:0:\n")
    archive.file("etc/profile", _PROFILE.encode())
    archive.file("etc/issue", b"")
    add_modules(archive, modules, MODULES)
    return archive.pack()


def _without_cursor_query(busybox: bytes) -> bytes:
    """Busybox, made not to ask the terminal for the cursor's place after each prompt.

    xend keeps a console's output and shows it again to who attaches later; that terminal would answer each old
    question, and the answers would be typed into the guest. The build option for it is no choice at run time.
    """
    query = b"\x1b[6n\x00"
    return busybox.replace(query, bytes(len(query))) if busybox.count(query) == 1 else busybox


_SBIN: Final = {"getty", "modprobe"}


def add_modules(archive: Archive, tree: ModuleTree, names: tuple[str, ...]) -> None:
    """Put modules and what they need below /lib/modules, with the two tables that modprobe reads."""
    folder = f"lib/modules/{tree.root.name}"
    wanted = tree.closure(name for name in names if name in tree)
    depends: list[str] = []
    aliases: list[str] = []
    for module in wanted:
        archive.file(f"{folder}/{module.name}.ko", module.data)
        needed = [other.name for other in reversed(tree.closure([module.name])[:-1])]
        depends.append(f"{module.name}.ko:{''.join(f' {name}.ko' for name in needed)}\n")
        aliases += [f"alias {alias} {module.name}\n" for alias in module.aliases]
    archive.file(f"{folder}/modules.dep", "".join(depends).encode())
    archive.file(f"{folder}/modules.alias", "".join(aliases).encode())


def script(name: str) -> bytes:
    """A file that comes with pyxen and goes into a guest."""
    return resources.files("pyxen.image").joinpath("guest", name).read_bytes()

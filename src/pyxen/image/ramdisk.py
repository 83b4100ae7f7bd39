"""What the ramdisks of all images have: busybox, kernel modules, and scripts that come with pyxen.

Ramdisks are not compressed: unpacking would cost the guest more time than reading costs the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Final

from pyxen.errors import Unsupported
from pyxen.image.command import need
from pyxen.image.cpio import Archive
from pyxen.image.modules import ModuleTree

DISK_MODULES: Final = ("virtio_pci", "virtio_mmio", "virtio_blk", "xen_blkfront")
"""What reaches a root disk on either engine; those that a kernel has built in, or not at all, are left out."""

_FOLDERS: Final = ("dev", "etc", "mnt", "proc", "root", "run", "sys", "tmp")
_APPLETS: Final = ("bin/sh", "bin/mount", "bin/login", "sbin/getty", "sbin/modprobe")
"""The names under which others than the shell look busybox up; the shell knows all applets by itself."""
AGENT_FOLDER: Final = "/lib/pyxen"
_CURSOR_QUERY: Final = b"\x1b[6n\x00"


def start(init: str, modules: ModuleTree, names: Sequence[str], *, program: bytes | None = None) -> Archive:
    """A ramdisk with busybox (``program``: another than the host's), the script ``init`` as process 1, and modules."""
    archive = Archive()
    for folder in _FOLDERS:
        archive.folder(folder)
    archive.character_device("dev/console", 5, 1)
    archive.file("bin/busybox", busybox() if program is None else program, 0o755)
    for path in _APPLETS:
        archive.symlink(path, "/bin/busybox")
    archive.file("init", script(init), 0o755)
    archive.file("lib/load-modules", script("load-modules"))
    add_modules(archive, modules, names)
    return archive


def agent_files() -> dict[str, tuple[bytes, int]]:
    """What an image has below AGENT_FOLDER to be spoken to by xend: by name, the contents and the mode."""
    from pyxen.image.native import agent, compiler

    return {"agent": (compiler.build(agent.main), 0o755), "start-agent": (script("start-agent"), 0o644)}


def script(name: str) -> bytes:
    """A file that comes with pyxen and goes into a guest."""
    return resources.files("pyxen.image").joinpath("guest", name).read_bytes()


def busybox() -> bytes:
    """The host's busybox, for a guest. Raises Unsupported if there is none that runs without libraries."""
    path = Path(need("busybox"))
    data = path.read_bytes()
    if b"/ld-linux" in data[:4096]:
        raise Unsupported(f"{path} needs libraries", hint="Install the other one: apt-get install busybox-static")
    return without_cursor_query(data)


def without_cursor_query(busybox: bytes) -> bytes:
    """Busybox, made not to ask the terminal for the cursor's place after each prompt.

    xend keeps a console's output and shows it again to who attaches later; that terminal would answer each old
    question, and the answers would be typed into the guest. Busybox can only be told at build time.
    """
    if busybox.count(_CURSOR_QUERY) != 1:
        return busybox
    return busybox.replace(_CURSOR_QUERY, bytes(len(_CURSOR_QUERY)))


def add_modules(archive: Archive, tree: ModuleTree, names: Sequence[str]) -> None:
    """Put modules and what they need below /lib/modules, with the two tables that modprobe reads."""
    folder = f"lib/modules/{tree.root.name}"
    depends: list[str] = []
    aliases: list[str] = []
    for module in tree.closure(name for name in names if name in tree):
        archive.file(f"{folder}/{module.name}.ko", module.data)
        needed = [other.name for other in reversed(tree.closure([module.name])[:-1])]
        depends.append(f"{module.name}.ko:{''.join(f' {name}.ko' for name in needed)}\n")
        aliases += [f"alias {alias} {module.name}\n" for alias in module.aliases]
    archive.file(f"{folder}/modules.dep", "".join(depends).encode())
    archive.file(f"{folder}/modules.alias", "".join(aliases).encode())

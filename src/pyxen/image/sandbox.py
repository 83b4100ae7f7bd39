"""What ``xm run`` boots: a kernel from wherever it is, and a ramdisk that makes a root of the host's files.

    KERNELS/packages/KEY/         an unpacked package of Debian's, with the lists that modprobe reads
    KERNELS/run/KEY/              the modules of a build tree, as links, with these lists
    KERNELS/run/KEY.ramdisk       the ramdisk for one kernel

All of it can be made again, and is when what it was made of has changed.
"""

from __future__ import annotations

import fcntl
import hashlib
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Final

from pyxen.errors import ConfigError, NotFound, Unsupported
from pyxen.image import debs, ramdisk
from pyxen.image.command import need, run
from pyxen.image.files import make_folder, storage_error, write_file
from pyxen.image.kernel import Kernel, known, unpack
from pyxen.image.modules import ModuleTree
from pyxen.image.pruning import mark_used
from pyxen.image.recipe import FAST_START

DEFAULT: Final = "linux-image-amd64"
"""Debian's kernel for all machines: its cloud kernel has no 9p."""
HOST: Final = "host"
"""The name of the kernel that the host itself runs."""
VERSION: Final = 1
"""Raised with each change of what is made."""
CMDLINE: Final = FAST_START
MODULES: Final = (
    "virtio_pci",
    "virtio_mmio",
    "virtio_console",
    "9pnet_virtio",
    "9p",
    "overlay",
    "pvpanic_pci",
    "pvpanic_mmio",
)
_PACKAGE = re.compile(r"linux-image-[a-z0-9][a-z0-9.+~-]*")
_LISTS = Path("/var/lib/apt/lists")
_BUILT = Path("arch/x86/boot/bzImage")

Report = Callable[[str], None]
"""Told of each step that takes its time; what it raises ends the work."""


@dataclass(frozen=True, slots=True)
class Boot:
    """A kernel, ready to be run."""

    kernel: Path
    """A bzImage or vmlinux."""
    release: str
    pvh: bool
    """It can be started without firmware."""
    ramdisk: Path
    modules: Path | None
    """A folder to mount at /lib/modules/RELEASE, where the host has none there."""
    symbols: Path | None
    """The vmlinux that gdb wants, where it is known."""


@dataclass(frozen=True, slots=True)
class _Source:
    """Where a kernel comes from."""

    kernel: Path
    tree: Path | None = None
    """The build tree that it is in."""
    root: Path | None = None
    """The unpacked package that it is in."""


def prepare(name: str | None, kernels: Path, report: Report) -> Boot:
    """The kernel that ``name`` stands for: a file, a build tree, a package's file or name, a release, or ``host``.

    Blocking; safe to call twice at once. Raises NotFound, ConfigError, Unsupported or Unavailable.
    """
    source = _find(name or DEFAULT, kernels, report)
    if known(source.kernel, kernels) is None:
        report("Unpacking the kernel")
    kernel = unpack(source.kernel, kernels)
    if kernel.bits != 64:
        raise Unsupported(
            f"kernel {source.kernel} has {kernel.bits} bits, this host's programs have 64",
            hint="A domain with a system of its own can have it: xm create kernel=…",
        )
    if kernel.pvh_entry is None and source.kernel.name.startswith("vmlinux"):
        raise ConfigError(
            f"kernel {source.kernel} has no PVH entry point (built without CONFIG_PVH)",
            key="kernel",
            hint="Give its bzImage, which any loader can start: make bzImage",
        )
    modules, at_its_place = _modules(source, kernel, kernels, report)
    symbols = source.tree / "vmlinux" if source.tree else None
    return Boot(
        kernel=source.kernel,
        release=kernel.release,
        pvh=kernel.pvh_entry is not None,
        ramdisk=_ramdisk(kernel, modules, kernels, report),
        modules=None if at_its_place else modules,
        symbols=symbols if symbols and symbols.exists() else None,
    )


class _NotReadyError(Exception):
    """Something would have to be made."""


def ready(name: str | None, kernels: Path) -> Boot | None:
    """The same if all of it is there already, else None. Takes milliseconds."""

    def stop(step: str) -> None:
        raise _NotReadyError

    try:
        return prepare(name, kernels, stop)
    except _NotReadyError:
        return None


def _find(name: str, kernels: Path, report: Report) -> _Source:
    if name.startswith("/"):
        return _at(Path(name), kernels, report)
    release = os.uname().release if name == HOST else name
    if "/" not in name and (installed := Path("/boot") / f"vmlinuz-{release}").exists():
        return _Source(installed)
    if _PACKAGE.fullmatch(name):
        return _package(name, kernels, report)
    if name == HOST:
        raise NotFound(
            f"this host has no /boot/vmlinuz-{release} for the kernel that it runs",
            hint="Leave --kernel out to have Debian's.",
        )
    raise NotFound(
        f"there is no kernel '{name}'",
        hint="Give a bzImage, a build tree, a Debian package (linux-image-…) or its file, or 'host'.",
    )


def _at(path: Path, kernels: Path, report: Report) -> _Source:
    """The kernel at a path."""
    if path.is_dir():
        built = path / _BUILT
        if not built.exists():
            raise NotFound(f"no kernel has been built in {path}: there is no {_BUILT}", hint="make -C … bzImage")
        return _Source(built, tree=path)
    if path.suffix == ".deb":
        return _unpacked(path, _key(*_facts(path)), kernels, report, lambda scratch: path)
    for tree in (path.parent, *([path.parents[3]] if len(path.parents) > 3 else [])):
        if (tree / "modules.order").exists() and path in (tree / _BUILT, tree / "vmlinux"):
            return _Source(path, tree=tree)
    root = path.parent.parent
    return _Source(path, root=root if path.parent.name == "boot" and root != Path("/") else None)


def _package(name: str, kernels: Path, report: Report) -> _Source:
    """The kernel of a package, or of the one that a package like linux-image-amd64 stands for, once it is there."""
    note = kernels / "packages" / "names" / name
    if not note.exists() or _age(note) > _age(_LISTS):
        report(f"Looking for {name}")
        package = name if re.fullmatch(r"linux-image-\d.*", name) else debs.find_package(name).package
        write_file(note, [package.encode()])
    package = note.read_text()
    return _unpacked(Path(package), package, kernels, report, lambda scratch: debs.download(package, scratch))


def _unpacked(label: Path, key: str, kernels: Path, report: Report, fetch: Callable[[Path], Path]) -> _Source:
    """The kernel in a package's file, which ``fetch`` gets into a folder if it isn't unpacked yet."""
    root = kernels / "packages" / key
    if not (root / "done").exists():
        report(f"Getting {label.name}")
        with _lock(kernels / "packages"):
            if not (root / "done").exists():
                _unpack(root, fetch, report)
    mark_used(root / "done")
    found = sorted((root / "boot").glob("vmlinuz-*"))
    if not found:
        raise NotFound(f"package {label.name} holds no kernel", hint="The kernel is in linux-image-…, not in headers.")
    return _Source(found[0], root=root)


def _unpack(root: Path, fetch: Callable[[Path], Path], report: Report) -> None:
    scratch = root.with_name(f".{root.name}.part")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        make_folder(scratch)
        deb = fetch(scratch)
        report("Unpacking its files")
        run(["dpkg-deb", "-x", deb, scratch / "root"], what=f"unpack {deb.name}")
        for folder in _module_folders(scratch / "root"):
            _list_modules(scratch / "root", folder)
        (scratch / "root" / "done").touch()
        shutil.rmtree(root, ignore_errors=True)
        (scratch / "root").chmod(0o755)
        (scratch / "root").rename(root)
    except OSError as error:
        raise storage_error(error, root) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _module_folders(root: Path) -> list[Path]:
    return [each for place in ("lib/modules", "usr/lib/modules") for each in (root / place).glob("*")]


def _list_modules(root: Path, folder: Path) -> None:
    """Write the lists that modprobe reads: kmod's where the host has kmod, else busybox's, for its own modprobe."""
    own = shutil.which("depmod", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    command = [own] if own else [need("busybox"), "depmod"]
    if not folder.is_relative_to(root / "lib"):
        (root / "lib").symlink_to("usr/lib")
    run([*command, "-b", root, folder.name], what=f"list the modules of {folder.name}")


def _modules(source: _Source, kernel: Kernel, kernels: Path, report: Report) -> tuple[Path | None, bool]:
    """The folder with the kernel's modules, and whether it is where the guest looks for it."""
    if source.tree is not None:
        return _tree_modules(source.tree, kernel.release, kernels, report), False
    if source.root is not None:
        found = [each for each in _module_folders(source.root) if each.name == kernel.release]
        return (found[0] if found else None), False
    host = Path("/lib/modules") / kernel.release
    return (host, True) if (host / "modules.dep").exists() else (None, False)


def _tree_modules(tree: Path, release: str, kernels: Path, report: Report) -> Path | None:
    """Links to the modules that were built in a tree, with their lists, below a folder of our own."""
    order = tree / "modules.order"
    if not order.exists():
        return None
    root = kernels / "run" / _key(release, *_facts(order))
    folder = root / "lib" / "modules" / release
    if (folder / "modules.dep").exists():
        return folder
    report("Listing the modules of the build tree")
    with _lock(kernels / "run"):
        shutil.rmtree(root, ignore_errors=True)
        try:
            for line in order.read_text().splitlines():
                # Since Linux 6.3 the objects are listed, before that the modules.
                module = tree / f"{line.removesuffix('.o').removesuffix('.ko')}.ko"
                link = folder / "kernel" / module.relative_to(tree)
                make_folder(link.parent)
                link.symlink_to(module)
            for name in ("modules.order", "modules.builtin", "modules.builtin.modinfo"):
                if (tree / name).exists():
                    shutil.copyfile(tree / name, folder / name)
        except OSError as error:
            raise storage_error(error, folder) from error
        _list_modules(root, folder)
    return folder


def _ramdisk(kernel: Kernel, modules: Path | None, kernels: Path, report: Report) -> Path:
    """The ramdisk for a kernel. Without modules the kernel must have all it needs built in."""
    made_of = [*_facts(modules / "modules.dep"), str(modules)] if modules else []
    scripts = [each for each in resources.files("pyxen.image").joinpath("guest").iterdir() if each.is_file()]
    scripts += [each for each in resources.files("pyxen.image.native").iterdir() if each.name.endswith(".py")]
    code = hashlib.sha256(b"".join(each.read_bytes() for each in sorted(scripts, key=lambda each: each.name)))
    key = _key(str(VERSION), kernel.release, code.hexdigest(), *_facts(Path(need("busybox"))), *made_of)
    path = kernels / "run" / f"{key}.ramdisk"
    if not path.exists():
        report("Making the ramdisk")
        tree = ModuleTree(modules) if modules else ModuleTree(kernels / "run" / "none" / kernel.release)
        if modules is not None and "9p" not in tree and not _has_built_in(modules, "9p"):
            raise Unsupported(
                f"kernel {kernel.release} has no 9p, by which it would get the host's files",
                hint=f"Debian's {DEFAULT} has it; in a build of your own: CONFIG_NET_9P_VIRTIO, CONFIG_9P_FS.",
            )
        write_file(path, [make_ramdisk(tree)])
    mark_used(path)
    return path


def make_ramdisk(modules: ModuleTree) -> bytes:
    """The initial ramdisk, a cpio archive, with those of its modules that the kernel has not built in."""
    archive = ramdisk.start("run-init", modules, MODULES)
    archive.file("lib/run-rest", ramdisk.script("run-rest"))
    data, mode = ramdisk.agent_files()["agent"]
    archive.file(f"{ramdisk.AGENT_FOLDER}/agent".lstrip("/"), data, mode)
    return archive.pack()


def _has_built_in(modules: Path, name: str) -> bool:
    try:
        return f"/{name}.ko" in (modules / "modules.builtin").read_text()
    except OSError:
        return False


def _facts(path: Path) -> tuple[str, ...]:
    """What changes with a file's contents."""
    try:
        found = path.stat()
    except OSError as error:
        raise NotFound(f"{path}: {error.strerror}") from None
    return str(path.resolve()), str(found.st_size), str(found.st_mtime_ns), str(found.st_ino)


def _age(path: Path) -> float:
    """How long ago it was changed, in seconds; without end for what isn't there."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return math.inf


def _key(*facts: str) -> str:
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:24]


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """One process at a time."""
    try:
        make_folder(folder)
        with (folder / "lock").open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise storage_error(error, folder) from error

"""Debian's cloud kernel: from this host if it is installed, else from its package, which is unpacked, not installed.

Packages come through apt as this machine has it set up: its sources, proxies and keys are used as they are. Those of
another architecture come through the same sources, with lists in a folder of their own (``Lists``).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pyxen.errors import PyxenError, Unavailable, Unsupported
from pyxen.image.command import run
from pyxen.image.modules import ModuleTree

META_PACKAGE: Final = "linux-image-cloud-amd64"


@dataclass(frozen=True, slots=True)
class KernelSource:
    """Where the kernel comes from: a package to fetch, or (``package`` empty) this host."""

    identity: str
    """Changes with each build of the kernel; tells whether an image is up to date."""
    package: str = ""
    release: str = ""


@dataclass(frozen=True, slots=True)
class KernelFiles:
    """A packed kernel and its modules."""

    vmlinuz: Path
    modules: ModuleTree


@dataclass(frozen=True, slots=True)
class Lists:
    """What apt knows of another architecture, kept below ``folder``: this machine's own lists stay as they are."""

    architecture: str
    folder: Path

    def environ(self) -> dict[str, str]:
        """What apt's commands need in their environment to use these lists."""
        state, cache = self.folder / "state", self.folder / "cache"
        for place in (state / "lists" / "partial", cache / "archives" / "partial"):
            place.mkdir(parents=True, exist_ok=True)
        (state / "status").touch()
        config = self.folder / "apt.conf"
        config.write_text(
            f'APT::Architecture "{self.architecture}";\nAPT::Architectures {{ "{self.architecture}"; }};\n'
            f'Dir::State "{state}";\nDir::State::status "{state / "status"}";\nDir::Cache "{cache}";\n'
        )
        return {"APT_CONFIG": str(config)}


def find(root: Path = Path("/")) -> KernelSource:
    """The cloud kernel this machine can get. Raises Unavailable or Unsupported when there is none."""
    for vmlinuz in sorted(root.glob("boot/vmlinuz-*-cloud-amd64"), key=_version, reverse=True):
        release = vmlinuz.name.removeprefix("vmlinuz-")
        if os.access(vmlinuz, os.R_OK) and (root / "lib/modules" / release / "kernel").is_dir():
            found = vmlinuz.stat()
            return KernelSource(f"{release} of this host, {found.st_size}, {found.st_mtime_ns}", release=release)
    return find_package(META_PACKAGE)


def find_package(meta: str, lists: Lists | None = None) -> KernelSource:
    """The kernel that a package like linux-image-686-pae stands for. Raises as ``find`` does."""
    fields = _show(meta, lists)
    flavour = re.escape(meta.removeprefix("linux-image"))
    match = re.search(rf"linux-image-\d[^\s,|]*{flavour}", fields.get("Depends", ""))
    if match is None:
        raise Unavailable(f"package {meta} depends on no kernel: {fields.get('Depends', 'nothing at all')}")
    return KernelSource(f"{match[0]} {fields.get('Version', '?')}", package=match[0])


def _version(path: Path) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", path.name))


def fetch(source: KernelSource, scratch: Path, root: Path = Path("/"), *, lists: Lists | None = None) -> KernelFiles:
    """Get the kernel's files, below ``scratch`` if they must be unpacked."""
    release = source.release
    if source.package:
        root = scratch / "kernel"
        unpack(source.package, scratch, root, lists=lists)
        release = source.package.removeprefix("linux-image-")
    vmlinuz = root / "boot" / f"vmlinuz-{release}"
    modules = next(
        (each for each in (root / "lib/modules", root / "usr/lib/modules") if (each / release).is_dir()), None
    )
    if modules is None or not vmlinuz.is_file():
        raise Unavailable(f"package {source.package} does not hold kernel {release}")
    return KernelFiles(vmlinuz, ModuleTree(modules / release))


def unpack(package: str, scratch: Path, folder: Path, *, lists: Lists | None = None) -> None:
    """The files of ``package`` below ``folder``; the .deb stays in ``scratch``."""
    run(["dpkg-deb", "-x", download(package, scratch, lists=lists), folder], what=f"unpack {package}")


def download(package: str, folder: Path, *, lists: Lists | None = None) -> Path:
    """Fetch the .deb of ``package`` into ``folder``. Package lists that have aged are renewed once, where root can."""
    # As root, apt would fetch as a user that can't write into a private folder, and warn about it.
    command = ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", package]
    what = f"download {package}"
    environ = lists.environ() if lists else None
    try:
        run(command, what=what, cwd=folder, env=environ)
    except Unavailable:
        if lists is None and os.geteuid() != 0:
            raise
        _update(lists)
        run(command, what=what, cwd=folder, env=environ)
    deb = next(folder.glob(f"{package}_*.deb"), None)
    if deb is None:
        raise Unavailable(f"cannot download {package}: apt-get has left no file")
    return deb


def _show(package: str, lists: Lists | None) -> dict[str, str]:
    """The one-line fields of a package that apt knows."""
    command = ["apt-cache", "show", "--no-all-versions", package]
    what = f"find package {package}"
    environ = lists.environ() if lists else None
    try:
        text = run(command, what=what, env=environ)
    except Unsupported:
        raise Unsupported(
            "this host has neither Debian's cloud kernel nor apt to get it with",
            hint="Build the image on Debian, or name a kernel of your own: kernel=…, ramdisk=…",
        ) from None
    except Unavailable:
        if lists is None and os.geteuid() != 0:
            raise Unavailable(
                f"apt knows no package {package}", hint="Renew its lists: sudo apt-get update; then run this again."
            ) from None
        _update(lists)
        text = run(command, what=what, env=environ)
    fields = (line.partition(": ") for line in text.splitlines() if not line.startswith(" "))
    return {key: value for key, colon, value in fields if colon}


def _update(lists: Lists | None) -> None:
    command = ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "update"] if lists else ["apt-get", "-q", "update"]
    try:
        run(command, what="renew apt's package lists", env=lists.environ() if lists else None)
    except Unavailable as error:
        if lists:
            # One of several indices that can't be had is no reason to do without the others.
            return
        error.hint = error.hint or "See what apt-get update says."
        raise
    except PyxenError as error:
        error.hint = error.hint or "See what apt-get update says."
        raise

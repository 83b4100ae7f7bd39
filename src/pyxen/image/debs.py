"""Debian's cloud kernel: from this host if it is installed, else from its package, which is unpacked, not installed.

Packages come through apt as this machine has it set up: its sources, proxies and keys are used as they are.
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
_KERNEL: Final = re.compile(r"linux-image-\d[^\s,|]*-cloud-amd64")


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


def find(root: Path = Path("/")) -> KernelSource:
    """The cloud kernel this machine can get. Raises Unavailable or Unsupported when there is none."""
    for vmlinuz in sorted(root.glob("boot/vmlinuz-*-cloud-amd64"), key=_version, reverse=True):
        release = vmlinuz.name.removeprefix("vmlinuz-")
        if os.access(vmlinuz, os.R_OK) and (root / "lib/modules" / release / "kernel").is_dir():
            found = vmlinuz.stat()
            return KernelSource(f"{release} of this host, {found.st_size}, {found.st_mtime_ns}", release=release)
    fields = _show(META_PACKAGE)
    match = _KERNEL.search(fields.get("Depends", ""))
    if match is None:
        raise Unavailable(f"package {META_PACKAGE} depends on no kernel: {fields.get('Depends', 'nothing at all')}")
    return KernelSource(f"{match[0]} {fields.get('Version', '?')}", package=match[0])


def _version(path: Path) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", path.name))


def fetch(source: KernelSource, scratch: Path, root: Path = Path("/")) -> KernelFiles:
    """Get the kernel's files, below ``scratch`` if they must be unpacked."""
    release = source.release
    if source.package:
        unpacked = scratch / "kernel"
        run(["dpkg-deb", "-x", download(source.package, scratch), unpacked], what=f"unpack {source.package}")
        root = unpacked
        release = source.package.removeprefix("linux-image-")
    vmlinuz = root / "boot" / f"vmlinuz-{release}"
    modules = next(
        (each for each in (root / "lib/modules", root / "usr/lib/modules") if (each / release).is_dir()), None
    )
    if modules is None or not vmlinuz.is_file():
        raise Unavailable(f"package {source.package} does not hold kernel {release}")
    return KernelFiles(vmlinuz, ModuleTree(modules / release))


def download(package: str, folder: Path) -> Path:
    """Fetch the .deb of ``package`` into ``folder``. Package lists that have aged are renewed once, where root can."""
    # As root, apt would fetch as a user that can't write into a private folder, and warn about it.
    command = ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", package]
    what = f"download {package}"
    try:
        run(command, what=what, cwd=folder)
    except Unavailable:
        if os.geteuid() != 0:
            raise
        _update()
        run(command, what=what, cwd=folder)
    deb = next(folder.glob(f"{package}_*.deb"), None)
    if deb is None:
        raise Unavailable(f"cannot download {package}: apt-get has left no file")
    return deb


def _show(package: str) -> dict[str, str]:
    """The one-line fields of a package that apt knows."""
    command = ["apt-cache", "show", "--no-all-versions", package]
    what = f"find package {package}"
    try:
        text = run(command, what=what)
    except Unsupported:
        raise Unsupported(
            "this host has neither Debian's cloud kernel nor apt to get it with",
            hint="Build the image on Debian, or name a kernel of your own: kernel=…, ramdisk=…",
        ) from None
    except Unavailable:
        if os.geteuid() != 0:
            raise Unavailable(
                f"apt knows no package {package}", hint="Renew its lists: sudo apt-get update; then run this again."
            ) from None
        _update()
        text = run(command, what=what)
    fields = (line.partition(": ") for line in text.splitlines() if not line.startswith(" "))
    return {key: value for key, colon, value in fields if colon}


def _update() -> None:
    try:
        run(["apt-get", "-q", "update"], what="renew apt's package lists")
    except PyxenError as error:
        error.hint = error.hint or "See what apt-get update says."
        raise

"""A cgroup of its own for each domain's process, where cgroup v2 can be written to; elsewhere: none, and no harm.

Memory, CPU and process limits build on it; for now it keeps a domain's processes together for whoever looks.
"""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path

_ROOT_NAME = "pyxen"


@functools.cache
def find_root() -> Path | None:
    """The folder of pyxen's groups below a writable cgroup2 mount, made if need be; None where there is none.

    A process that isn't root may make groups below its own group where that was delegated to it.
    """
    for line in _read("/proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        if right.split(" ", 1)[0] != "cgroup2":
            continue
        mount = Path(left.split()[4])
        for parent in dict.fromkeys((mount, mount / _own_group())):
            folder = parent / _ROOT_NAME
            with contextlib.suppress(OSError):
                folder.mkdir(exist_ok=True)
                return folder
    return None


def _own_group() -> str:
    for line in _read("/proc/self/cgroup").splitlines():
        if line.startswith("0::"):
            return line[3:].lstrip("/")
    return ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def enter(uuid: str, pid: int, *, root: Path | None = None) -> Path | None:
    """Move a process into the domain's group; returns the group, or None where that is not possible."""
    root = root or find_root()
    if root is None:
        return None
    group = root / uuid
    try:
        group.mkdir(exist_ok=True)
        (group / "cgroup.procs").write_text(str(pid))
    except OSError:
        remove(uuid, root=root)
        return None
    return group


def remove(uuid: str, *, root: Path | None = None) -> None:
    """Remove a domain's group, if it is there and empty."""
    root = root or find_root()
    if root is None:
        return
    with contextlib.suppress(OSError):
        (root / uuid).rmdir()

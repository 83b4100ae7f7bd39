"""A cgroup of its own for each domain's process, where cgroup v2 can be written to; elsewhere: none, and no harm.

It keeps a domain's processes together for whoever looks, and bounds their memory and number: a guest that makes its
process grow is stopped before the host's memory is gone. See the kernel's admin-guide/cgroup-v2.
"""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass
from pathlib import Path

_ROOT_NAME = "pyxen"
_CONTROLLERS = ("memory", "pids")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a domain's processes may have together."""

    memory_mib: int
    """The guest's memory, what the monitor itself needs, and the host's cache of the domain's disks."""
    threads: int


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
                _pass_on(parent, folder)
                return folder
    return None


def _pass_on(*groups: Path) -> None:
    """Let the groups below have limits. The kernel refuses that to a group that has processes itself."""
    for group in groups:
        for controller in _CONTROLLERS:
            with contextlib.suppress(OSError):
                (group / "cgroup.subtree_control").write_text(f"+{controller}")


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


def limit(group: Path, limits: Limits) -> list[str]:
    """Set what can be set, and say what that is."""
    done: list[str] = []
    for file, value, words in (
        ("memory.max", limits.memory_mib << 20, "memory limit"),
        ("pids.max", limits.threads, "process limit"),
    ):
        # Not to be made where it isn't: in a cgroup there are just the files of its controllers.
        if (group / file).exists():
            with contextlib.suppress(OSError):
                (group / file).write_text(str(value))
                done.append(words)
    return done


def remove(uuid: str, *, root: Path | None = None) -> None:
    """Remove a domain's group, if it is there and empty."""
    root = root or find_root()
    if root is None:
        return
    with contextlib.suppress(OSError):
        (root / uuid).rmdir()

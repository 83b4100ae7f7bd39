"""A cgroup of its own for each domain's process, where cgroups can be written to; elsewhere: none, and no harm.

It keeps a domain's processes together for whoever looks, bounds their memory and number (a guest that makes its process
grow is stopped before the host's memory is gone), and shares out the CPUs. Of cgroup v1 only the cpu controller is
used. See the kernel's admin-guide/cgroup-v2 and scheduler/sched-design-CFS.
"""

from __future__ import annotations

import contextlib
import errno
import time
from dataclasses import dataclass
from pathlib import Path

from pyxen.engine.cgroup import shares
from pyxen.engine.cgroup.roots import Roots, find_roots
from pyxen.engine.cgroup.shares import Shares

__all__ = ["Group", "Limits", "Roots", "Shares", "enter", "find_roots", "limit", "make", "remove", "share", "weigh_io"]


_PROCS = "cgroup.procs"
_TRIES, _TRY_S = 10, 0.005
"""A helper that ends is in its group until it is gone."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a domain's processes may have together."""

    memory_mib: int
    """The guest's memory, what the monitor itself needs, and the host's cache of the domain's disks."""
    threads: int


@dataclass(frozen=True, slots=True)
class Group:
    """A domain's own groups."""

    unified: Path | None
    cpu: Path | None


def enter(uuid: str, pid: int, *, roots: Roots | None = None) -> Group | None:
    """Move a process into the domain's groups; returns them, or None where that is not possible."""
    roots = roots or find_roots()
    group = Group(_enter(roots.unified, uuid, pid), _enter(roots.cpu, uuid, pid))
    return group if group.unified or group.cpu else None


def make(uuid: str, *, roots: Roots | None = None) -> list[Path]:
    """Make the domain's groups where that is possible; the files by which a process enters them."""
    roots = roots or find_roots()
    made = []
    for root in (roots.unified, roots.cpu):
        if root is not None:
            with contextlib.suppress(OSError):
                (root / uuid).mkdir(exist_ok=True)
                made.append(root / uuid / _PROCS)
    return made


def _enter(root: Path | None, uuid: str, pid: int) -> Path | None:
    if root is None:
        return None
    group = root / uuid
    try:
        group.mkdir(exist_ok=True)
        (group / _PROCS).write_text(str(pid))
    except OSError:
        _remove(group)
        return None
    return group


def limit(group: Group, limits: Limits) -> list[str]:
    """Set what can be set, and say what that is."""
    done: list[str] = []
    if group.unified is None:
        return done
    for name, value, words in (
        ("memory.max", limits.memory_mib << 20, "memory limit"),
        ("pids.max", limits.threads, "process limit"),
    ):
        # Not to be made where it isn't: in a cgroup there are just the files of its controllers.
        file = group.unified / name
        if file.exists():
            with contextlib.suppress(OSError):
                file.write_text(str(value))
                done.append(words)
    return done


def share(uuid: str, wanted: Shares, *, roots: Roots | None = None) -> bool:
    """Set the domain's part of the CPUs; False where no controller does that for it."""
    roots = roots or find_roots()
    if roots.unified is not None and shares.set_v2(roots.unified / uuid, wanted):
        shares.balance_v2(roots.unified)
        return True
    if roots.cpu is not None and shares.set_v1(roots.cpu / uuid, wanted):
        shares.balance_v1(roots.cpu)
        return True
    return False


def weigh_io(uuid: str, weight: int, *, roots: Roots | None = None) -> bool:
    """Set the domain's part of busy disks, 1 to 10000; False where no controller does that for it. Of v1 none does."""
    roots = roots or find_roots()
    return roots.unified is not None and shares.weigh_io(roots.unified / uuid, weight)


def remove(uuid: str, *, roots: Roots | None = None) -> None:
    """Remove a domain's groups, where they are there and empty."""
    roots = roots or find_roots()
    if roots.unified is not None:
        _remove(roots.unified / uuid)
        shares.balance_v2(roots.unified)
    if roots.cpu is not None:
        _remove(roots.cpu / uuid)
        shares.balance_v1(roots.cpu)


def _remove(group: Path) -> None:
    for _ in range(_TRIES):
        try:
            group.rmdir()
        except OSError as error:
            if error.errno != errno.EBUSY:
                return
            time.sleep(_TRY_S)
        else:
            return

"""Where pyxen's groups are: folders below the mounts of cgroup v2, and of v1's cpu controller."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_NAME = "pyxen"
_CONTROLLERS = ("memory", "pids", "io", "cpu")
_PROC = Path("/proc/self")


@dataclass(frozen=True, slots=True)
class Roots:
    """The folders above the domains' groups; None where there is none that may be written to."""

    unified: Path | None = None
    """cgroup v2."""
    cpu: Path | None = None
    """cgroup v1's hierarchy with the cpu controller; v2 does not have that controller then."""


@functools.cache
def find_roots(proc: Path = _PROC) -> Roots:
    """Found, or made if need be.

    A process that isn't root may make groups below its own group where that was delegated to it.
    """
    unified = cpu = None
    for mount, version, controllers in _mounts(proc):
        if version == "cgroup2":
            unified = unified or _make(mount, _own_group(proc, ""), _CONTROLLERS)
        elif "cpu" in controllers:
            cpu = cpu or _make(mount, _own_group(proc, "cpu"), ())
    return Roots(unified, cpu)


def _mounts(proc: Path) -> Iterator[tuple[Path, str, list[str]]]:
    """Mount point, ``cgroup`` or ``cgroup2``, and options of the hierarchy: for v1, its controllers."""
    for line in _read(proc / "mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        version, *rest = right.split(" ")
        if version in ("cgroup", "cgroup2"):
            yield Path(left.split()[4]), version, rest[-1].split(",")


def _make(mount: Path, own: str, controllers: tuple[str, ...]) -> Path | None:
    for parent in dict.fromkeys((mount, mount / own)):
        folder = parent / _NAME
        with contextlib.suppress(OSError):
            folder.mkdir(exist_ok=True)
            _pass_on(parent, folder, controllers)
            return folder
    return None


def _pass_on(parent: Path, folder: Path, controllers: tuple[str, ...]) -> None:
    """Let the groups below have limits. The kernel refuses that to a group that has processes itself."""
    for group in (parent, folder):
        for controller in controllers:
            with contextlib.suppress(OSError):
                (group / "cgroup.subtree_control").write_text(f"+{controller}")


def _own_group(proc: Path, controller: str) -> str:
    """This process's group: in v2 (an empty ``controller``), or in that controller's hierarchy of v1."""
    for line in _read(proc / "cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        if controller in controllers.split(","):
            return group.lstrip("/")
    return ""


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""

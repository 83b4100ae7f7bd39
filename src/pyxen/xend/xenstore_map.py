"""Whose part of xenstore a path is in. Each domain keeps its own; what belongs to none xend makes up.

    /local/domain/ID, /vm/UUID                            the domain's
    /local/domain/0/backend/KIND/ID, …/error/backend/…    its devices' other halves
    /, /local, /local/domain, /vm, /local/domain/0, …     one tree out of all: the children of each
    /tool                                                 empty

A domain under QEMU has no store: a few nodes that never change are shown in its place.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path as File

from pyxen.xenstore.path import Path

_HOMES: Path = ("local", "domain")
_BACKENDS = (("local", "domain", "0", "backend"), ("local", "domain", "0", "error", "backend"))
_ONLY_DOM0 = ["n0"]


@dataclass(frozen=True, slots=True)
class Place:
    """A running domain. ``socket`` is where its store is to be reached; None: it has none."""

    domid: int
    uuid: str
    name: str = field(compare=False)
    socket: File | None = field(default=None, compare=False)
    memory_kib: int = field(default=0, compare=False)
    vcpus: int = field(default=1, compare=False)

    @property
    def home(self) -> Path:
        return (*_HOMES, str(self.domid))


@dataclass(slots=True)
class Node:
    """One node as it was read."""

    value: bytes = b""
    perms: list[str] = field(default_factory=lambda: list(_ONLY_DOM0))
    names: list[str] = field(default_factory=list)


class Whose(enum.Enum):
    """Paths that no domain has for itself."""

    ALL = enum.auto()
    """All have it together."""
    NOBODY = enum.auto()
    """It would be a domain's that does not run."""


def owner(path: Path, places: Iterable[Place]) -> Place | Whose:
    """The domain that has ``path``."""
    if path[:2] == _HOMES and len(path) > 2 and path[2] != "0":
        return next((place for place in places if str(place.domid) == path[2]), Whose.NOBODY)
    for backends in _BACKENDS:
        if path[: len(backends)] == backends and len(path) > len(backends) + 1:
            domid = path[len(backends) + 1]
            return next((place for place in places if str(place.domid) == domid), Whose.NOBODY)
    if path[:1] == ("vm",) and len(path) > 1:
        return next((place for place in places if place.uuid == path[1]), Whose.NOBODY)
    return Whose.ALL


def boundary(path: Path) -> int:
    """How many names of an owned path lead to the topmost node that its domain has."""
    for backends in _BACKENDS:
        if path[: len(backends)] == backends:
            return len(backends) + 2
    return 2 if path[:1] == ("vm",) else 3


def made_up(places: Iterable[Place]) -> Mapping[Path, Node]:
    """The nodes that are in nobody's store: the trunk, Domain-0's own, and those of domains without a store."""
    nodes: dict[Path, Node] = {(): Node()}

    def put(path: Path, value: str | int = "", perms: Iterable[str] = _ONLY_DOM0) -> None:
        for depth in range(len(path)):
            parent = nodes.setdefault(path[:depth], Node(perms=list(perms)))
            if path[depth] not in parent.names:
                parent.names.append(path[depth])
        nodes[path] = Node(str(value).encode(), list(perms), nodes[path].names if path in nodes else [])

    put(("tool",))
    put(("vm",))
    put((*_HOMES, "0"))
    put((*_HOMES, "0", "name"), "Domain-0")
    put((*_HOMES, "0", "domid"), 0)
    for place in places:
        if place.socket is not None:
            continue
        perms = ["n0", f"r{place.domid}"]
        vm = ("vm", place.uuid)
        put(vm, perms=perms)
        put((*vm, "name"), place.name, perms)
        put((*vm, "uuid"), place.uuid, perms)
        put(place.home, perms=perms)
        values: dict[Path, str | int] = {
            ("vm",): f"/vm/{place.uuid}",
            ("name",): place.name,
            ("domid",): place.domid,
            ("memory", "static-max"): place.memory_kib,
            ("memory", "target"): place.memory_kib,
            ("console", "type"): "ioemu",
            **{("cpu", str(number), "availability"): "online" for number in range(place.vcpus)},
        }
        for path, value in values.items():
            put((*place.home, *path), value, perms)
    return nodes


def merged(parts: Iterable[Node]) -> Node | None:
    """One node out of what several have at the same path: the first one's value, all children; None if there is none.

    Names that are numbers are in their order.
    """
    found: Node | None = None
    for part in parts:
        if found is None:
            found = Node(part.value, part.perms, list(part.names))
        else:
            found.names += [name for name in part.names if name not in found.names]
            found.value = found.value or part.value
    if found is not None and all(name.isdigit() for name in found.names):
        found.names.sort(key=int)
    return found

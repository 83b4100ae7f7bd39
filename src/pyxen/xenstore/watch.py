"""Watches: who wants to hear of which part of the tree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from pyxen.xenstore.operations import Caller
from pyxen.xenstore.path import Path, home, text
from pyxen.xenstore.perms import Access
from pyxen.xenstore.tree import Tree


class Listener(Protocol):
    """Whoever set watches: a connection, or code of this process."""

    @property
    def caller(self) -> Caller: ...

    def deliver(self, watch: Watch, path: Path) -> None:
        """``path`` or something below it has changed."""
        ...


@dataclass(frozen=True, slots=True)
class Watch:
    """``token`` is the watcher's own word; ``depth`` None means all levels below; ``relative``: paths from home."""

    path: Path
    token: bytes
    depth: int | None = None
    relative: bool = False

    def covers(self, path: Path) -> bool:
        """Is this about a change at ``path``?"""
        below = len(path) - len(self.path)
        if below < 0 or path[: len(self.path)] != self.path:
            return False
        return self.depth is None or below <= self.depth

    def spelled(self, path: Path, domid: int) -> str:
        """``path`` as the watcher wrote its own."""
        return "/".join(path[len(home(domid)) :]) if self.relative else text(path)


def affected(watch: Watch, path: Path, before: Tree, *, removal: bool) -> Path | None:
    """What to tell the watcher of a change at ``path``; None: nothing."""
    if watch.covers(path):
        return path
    # With a node go all below it; who watches one of those hears its own path.
    below = len(watch.path) > len(path) and watch.path[: len(path)] == path
    return watch.path if removal and below and before.find(watch.path) is not None else None


def may_hear(caller: Caller, path: Path, before: Tree, after: Tree) -> bool:
    """May the caller learn that ``path`` has changed: it could read it before, or can now."""
    for tree in (before, after):
        node = tree.find(path)
        if node is not None and caller.access(node.perms) & Access.READ:
            return True
    return False

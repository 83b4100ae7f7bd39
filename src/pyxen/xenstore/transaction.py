"""Transactions: work on a snapshot, then the same work on what has become of the tree meanwhile.

Two transactions conflict only where one has changed what the other has seen. Seen is a node's value, its permissions
(which includes whether it exists) or the names of its children, each for itself: guests that write side by side below
one directory don't disturb each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from pyxen.abi.xs_wire import Error
from pyxen.xenstore.errors import XsError
from pyxen.xenstore.path import Path
from pyxen.xenstore.tree import Node, Tree


class Aspect(Enum):
    """What of a node was looked at."""

    VALUE = auto()
    PERMS = auto()
    NAMES = auto()


@dataclass(frozen=True, slots=True)
class Change:
    """A step that succeeded within the transaction. ``apply`` is given a tree and the generation to mark it with."""

    path: Path
    apply: Callable[[Tree, int], Tree]
    removal: bool = False


class Transaction:
    """One connection's snapshot with its own changes on top."""

    def __init__(self, base: Tree, *, steps: int | None) -> None:
        self.tree = base
        self.changes: list[Change] = []
        self._base = base
        self._seen: set[tuple[Path, Aspect]] = set()
        self._steps = steps

    def see(self, path: Path, aspect: Aspect) -> None:
        """Remember that the outcome depends on this; raises XsError ENOSPC when the transaction grows too large."""
        depth, _ = self._base.nearest(path)
        # The right to touch a node, or what is said of its absence, comes from the nearest one that exists.
        self._seen.add((path[:depth], Aspect.PERMS))
        # If that one's child on the way is still missing, so is all below.
        self._seen.add((path, aspect) if depth == len(path) else (path[: depth + 1], Aspect.PERMS))
        self._check_size()

    def change(self, change: Change, generation: int) -> None:
        """Do it to the snapshot, note it for the commit. Raises what ``change.apply`` raises."""
        self.see(change.path, Aspect.PERMS)
        self.tree = change.apply(self.tree, generation)
        self.changes.append(change)
        self._check_size()

    def commit(self, current: Tree, generation: int) -> Tree:
        """``current`` with all changes. Raises XsError EAGAIN if something that was seen is no longer so."""
        if current is self._base:
            return self.tree
        for path, aspect in self._seen:
            if _aspect(self._base.find(path), aspect) != _aspect(current.find(path), aspect):
                raise XsError(Error.EAGAIN)
        try:
            for change in self.changes:
                current = change.apply(current, generation)
        except XsError as error:  # a quota that was used up meanwhile
            raise XsError(Error.EAGAIN) from error
        return current

    def _check_size(self) -> None:
        if self._steps is not None and len(self._seen) + len(self.changes) > self._steps:
            raise XsError(Error.ENOSPC)


def _aspect(node: Node | None, aspect: Aspect) -> object:
    if node is None:
        return None
    if aspect is Aspect.VALUE:
        return node.value
    return node.perms if aspect is Aspect.PERMS else list(node.children)

"""The tree as a value: a change makes a new tree that shares all that stays the same.

A snapshot is therefore nothing but a reference, which makes transactions and permission checks of the state before
a change cheap.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from pyxen.xenstore.path import Path
from pyxen.xenstore.perms import Perms


@dataclass(frozen=True, slots=True)
class Node:
    """One node. ``generation`` changes with its value, its permissions and the list of its children's names."""

    value: bytes = b""
    perms: Perms = field(default_factory=Perms)
    children: Mapping[str, Node] = field(default_factory=dict)
    generation: int = 0

    def walk(self) -> Iterator[Node]:
        """This node and all below."""
        waiting = [self]
        while waiting:
            node = waiting.pop()
            yield node
            waiting.extend(node.children.values())


@dataclass(frozen=True, slots=True)
class Tree:
    """All nodes, and how many of them each domain owns."""

    root: Node = field(default_factory=Node)
    owned: Mapping[int, int] = field(default_factory=lambda: {0: 1})

    def find(self, path: Path) -> Node | None:
        node = self.root
        for name in path:
            child = node.children.get(name)
            if child is None:
                return None
            node = child
        return node

    def nearest(self, path: Path) -> tuple[int, Node]:
        """The deepest node on the way to ``path`` that exists, and how many names lead to it."""
        node = self.root
        for depth, name in enumerate(path):
            child = node.children.get(name)
            if child is None:
                return depth, node
            node = child
        return len(path), node

    def set_value(self, path: Path, value: bytes, generation: int) -> Tree:
        """``path`` exists."""
        node = self._at(path)
        return self._with(path, replace(node, value=value, generation=generation), self.owned)

    def set_perms(self, path: Path, perms: Perms, generation: int) -> Tree:
        """``path`` exists."""
        node = self._at(path)
        owned = _moved(self.owned, {node.perms.owner: -1})
        owned = _moved(owned, {perms.owner: 1})
        return self._with(path, replace(node, perms=perms, generation=generation), owned)

    def create(self, path: Path, value: bytes, perms: Perms, generation: int) -> Tree:
        """``path`` does not exist; parents that are missing are made with the same permissions and no value."""
        depth, parent = self.nearest(path)
        new = Node(value, perms, {}, generation)
        for name in reversed(path[depth + 1 :]):
            new = Node(b"", perms, {name: new}, generation)
        parent = replace(parent, children={**parent.children, path[depth]: new}, generation=generation)
        return self._with(path[:depth], parent, _moved(self.owned, {perms.owner: len(path) - depth}))

    def remove(self, path: Path, generation: int) -> Tree:
        """``path`` exists and is not the root."""
        gone: dict[int, int] = {}
        for node in self._at(path).walk():
            gone[node.perms.owner] = gone.get(node.perms.owner, 0) - 1
        parent = self._at(path[:-1])
        children = {name: child for name, child in parent.children.items() if name != path[-1]}
        parent = replace(parent, children=children, generation=generation)
        return self._with(path[:-1], parent, _moved(self.owned, gone))

    def without_domain(self, domid: int, generation: int) -> Tree:
        """The tree after the death of ``domid``: a later domain of the same number inherits nothing from it."""
        tree = self
        for path, node in self._paths():
            perms = node.perms.without(domid)
            if perms != node.perms:
                tree = tree.set_perms(path, perms, generation)
        return tree

    def _paths(self) -> Iterator[tuple[Path, Node]]:
        waiting: list[tuple[Path, Node]] = [((), self.root)]
        while waiting:
            path, node = waiting.pop()
            yield path, node
            waiting.extend(((*path, name), child) for name, child in node.children.items())

    def _at(self, path: Path) -> Node:
        node = self.find(path)
        if node is None:
            raise KeyError(path)
        return node

    def _with(self, path: Path, node: Node, owned: Mapping[int, int]) -> Tree:
        """``node`` in the place of ``path``: only the nodes above it are copied."""
        above = [self.root]
        for name in path[:-1]:
            above.append(above[-1].children[name])
        for name, parent in zip(reversed(path), reversed(above), strict=bool(path)):
            node = replace(parent, children={**parent.children, name: node})
        return Tree(node, owned)


def _moved(owned: Mapping[int, int], changes: Mapping[int, int]) -> Mapping[int, int]:
    after = dict(owned)
    for domid, change in changes.items():
        count = after.get(domid, 0) + change
        if count:
            after[domid] = count
        else:
            after.pop(domid, None)
    return after

"""What may be done to a tree, and by whom: functions of a tree that return what is asked or the changed tree.

Each raises XsError: EACCES without the right, ENOENT for what is not there, ENOSPC beyond the quota.
"""

from __future__ import annotations

from dataclasses import dataclass

from pyxen.abi.xs_wire import Error
from pyxen.xenstore.errors import XsError
from pyxen.xenstore.path import Path
from pyxen.xenstore.perms import Access, Perms
from pyxen.xenstore.quota import Quota
from pyxen.xenstore.tree import Node, Tree


@dataclass(frozen=True, slots=True)
class Caller:
    """On whose behalf: a domain, which may also act for the domain that it serves (a stub domain's ``target``)."""

    domid: int
    target: int | None = None

    @property
    def privileged(self) -> bool:
        return self.domid == 0

    def access(self, perms: Perms) -> Access:
        access = perms.access(self.domid)
        return access if self.target is None else access | perms.access(self.target)


def look(tree: Tree, caller: Caller, path: Path, wanted: Access = Access.READ) -> Node:
    """The node at ``path``, if the caller has the right.

    Whether a node exists is told only to those who may do ``wanted`` with its nearest ancestor.
    """
    depth, node = tree.nearest(path)
    if caller.access(node.perms) & wanted != wanted:
        raise XsError(Error.EACCES)
    if depth < len(path):
        raise XsError(Error.ENOENT)
    return node


def write(tree: Tree, caller: Caller, path: Path, value: bytes, quota: Quota, generation: int) -> Tree:
    """Set a value; the node and its parents are made where they are missing."""
    if not caller.privileged and len(value) > quota.value_bytes:
        raise XsError(Error.ENOSPC)
    depth, nearest = tree.nearest(path)
    if not caller.access(nearest.perms) & Access.WRITE:
        raise XsError(Error.EACCES)
    if depth == len(path):
        return tree.set_value(path, value, generation)
    return tree.create(path, value, _new_perms(tree, caller, nearest, len(path) - depth, quota), generation)


def mkdir(tree: Tree, caller: Caller, path: Path, quota: Quota, generation: int) -> Tree:
    """Make a node without a value; one that exists stays as it is."""
    if tree.find(path) is not None:
        look(tree, caller, path, Access.WRITE)
        return tree
    return write(tree, caller, path, b"", quota, generation)


def remove(tree: Tree, caller: Caller, path: Path, generation: int) -> Tree:
    """Remove a node and all below; one that is missing is no error as long as its parent exists."""
    if not path:
        raise XsError(Error.EINVAL)
    depth, nearest = tree.nearest(path)
    if not caller.access(nearest.perms) & Access.WRITE:
        raise XsError(Error.EACCES)
    if depth < len(path) - 1:
        raise XsError(Error.ENOENT)
    return tree if depth < len(path) else tree.remove(path, generation)


def set_perms(tree: Tree, caller: Caller, path: Path, perms: Perms, quota: Quota, generation: int) -> Tree:
    """Only the owner may, and only domain 0 may give a node away."""
    node = look(tree, caller, path, Access.WRITE)
    owner = node.perms.owner
    if not caller.privileged and owner not in (caller.domid, caller.target):
        raise XsError(Error.EACCES)
    if not caller.privileged and perms.owner != owner:
        raise XsError(Error.EPERM)
    if not caller.privileged and len(perms) > quota.perms:
        raise XsError(Error.ENOSPC)
    return tree.set_perms(path, perms, generation)


def _new_perms(tree: Tree, caller: Caller, parent: Node, count: int, quota: Quota) -> Perms:
    if caller.privileged:
        return parent.perms
    if tree.owned.get(caller.domid, 0) + count > quota.nodes:
        raise XsError(Error.ENOSPC)
    return Perms(caller.domid, parent.perms.default, parent.perms.others)

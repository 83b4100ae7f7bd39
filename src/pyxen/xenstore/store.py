"""The store: the tree as it is now, the domains that are introduced, and who is told of changes.

Nothing here blocks or knows of sockets and rings. It is not thread-safe: its owner calls it from one thread, or under
one lock.
"""

from __future__ import annotations

from collections.abc import Callable

from pyxen.abi.xs_wire import Error
from pyxen.xenstore.errors import XsError
from pyxen.xenstore.path import SPECIAL, Path
from pyxen.xenstore.perms import Access, Perms
from pyxen.xenstore.quota import Quota
from pyxen.xenstore.transaction import Change, Transaction
from pyxen.xenstore.tree import Tree
from pyxen.xenstore.watch import Listener, Watch, affected, may_hear

INTRODUCE = SPECIAL["@introduceDomain"]
RELEASE = SPECIAL["@releaseDomain"]


class Store:
    """One tree for one domain and its host."""

    def __init__(self, quota: Quota | None = None) -> None:
        self.tree = Tree()
        self.quota = quota or Quota()
        self.introduced: set[int] = {0}
        self.targets: dict[int, int] = {}
        """Stub domains, and for whom each of them acts."""
        self.special: dict[Path, Perms] = {INTRODUCE: Perms(), RELEASE: Perms()}
        self._generation = 0
        self._watches: dict[Listener, dict[tuple[Path, bytes], Watch]] = {}
        self._farewells: dict[int, list[Callable[[], None]]] = {}

    def next_generation(self) -> int:
        """A number that no node has been marked with."""
        self._generation += 1
        return self._generation

    def change(self, change: Change) -> None:
        """Do it and tell who watches. Raises what ``change.apply`` raises; then nothing has changed."""
        before = self.tree
        self.tree = change.apply(before, self.next_generation())
        self._fire(change, before)

    def commit(self, transaction: Transaction) -> None:
        """Raises XsError EAGAIN if the transaction has to be tried again."""
        before = self.tree
        self.tree = transaction.commit(before, self.next_generation())
        for change in transaction.changes:
            self._fire(change, before)

    def introduce(self, domid: int) -> None:
        """A domain has come. Raises XsError EEXIST if it is here already."""
        if domid in self.introduced:
            raise XsError(Error.EEXIST)
        self.introduced.add(domid)
        self._announce(INTRODUCE)

    def release(self, domid: int) -> None:
        """A domain has gone: what it watched and began is forgotten, its nodes are domain 0's. ENOENT if unknown."""
        if domid == 0 or domid not in self.introduced:
            raise XsError(Error.EINVAL if domid == 0 else Error.ENOENT)
        self.introduced.discard(domid)
        self.targets.pop(domid, None)
        for farewell in self._farewells.pop(domid, []):
            farewell()
        for listener in [each for each in self._watches if each.caller.domid == domid]:
            self.forget(listener)
        self.tree = self.tree.without_domain(domid, self.next_generation())
        self.special = {path: perms.without(domid) for path, perms in self.special.items()}
        self._announce(RELEASE)

    def on_release(self, domid: int, callback: Callable[[], None]) -> None:
        """Call ``callback`` when ``domid`` is released, before anybody else hears of it."""
        self._farewells.setdefault(domid, []).append(callback)

    def watch(self, listener: Listener, watch: Watch) -> None:
        """Raises XsError EEXIST for the same path and token twice, ENOSPC beyond the quota."""
        own = self._watches.setdefault(listener, {})
        if (watch.path, watch.token) in own:
            raise XsError(Error.EEXIST)
        if not listener.caller.privileged and len(own) >= self.quota.watches:
            raise XsError(Error.ENOSPC)
        if watch.path in self.special and not listener.caller.access(self.special[watch.path]) & Access.READ:
            raise XsError(Error.EACCES)
        own[watch.path, watch.token] = watch

    def unwatch(self, listener: Listener, path: Path, token: bytes) -> None:
        """Raises XsError ENOENT if there is no such watch."""
        if self._watches.get(listener, {}).pop((path, token), None) is None:
            raise XsError(Error.ENOENT)

    def forget(self, listener: Listener) -> None:
        """Drop all that it watches."""
        self._watches.pop(listener, None)

    def _fire(self, change: Change, before: Tree) -> None:
        after = self.tree
        if after is before:
            return
        for listener, watches in list(self._watches.items()):
            for watch in list(watches.values()):
                path = affected(watch, change.path, before, removal=change.removal)
                if path is not None and may_hear(listener.caller, path, before, after):
                    listener.deliver(watch, path)

    def _announce(self, special: Path) -> None:
        for listener, watches in list(self._watches.items()):
            for watch in list(watches.values()):
                if watch.path == special and listener.caller.access(self.special[special]) & Access.READ:
                    listener.deliver(watch, special)

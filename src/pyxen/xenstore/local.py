"""The store as domain 0's own code in this process sees it: calls instead of messages.

Watches' callbacks never run inside of a change: they are queued, and run by the outermost call (or by ``settle``), so a
callback may write without growing the stack.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from pyxen.abi.xs_wire import Error
from pyxen.xenstore import operations, path, perms
from pyxen.xenstore.errors import XsError
from pyxen.xenstore.operations import Caller
from pyxen.xenstore.path import Path
from pyxen.xenstore.store import Store
from pyxen.xenstore.transaction import Change, Transaction
from pyxen.xenstore.tree import Tree
from pyxen.xenstore.watch import Watch

_DOM0 = Caller(0)


class Local:
    """Domain 0's view. Paths are absolute; values are text, decoded leniently where a guest wrote them.

    ``wake`` is called when a guest's change has queued callbacks: then ``settle`` is to be called soon.
    """

    def __init__(self, store: Store, *, wake: Callable[[], None] = lambda: None) -> None:
        self.store = store
        self._wake = wake
        self._queue: deque[tuple[Callable[[str], None], str]] = deque()
        self._busy = 0
        self._count = 0

    def read(self, where: str) -> str | None:
        """The value, None if there is no such node."""
        node = self.store.tree.find(_path(where))
        return None if node is None else node.value.decode("utf-8", "replace")

    def names(self, where: str) -> list[str]:
        """The names of the children; none if there is no such node."""
        node = self.store.tree.find(_path(where))
        return [] if node is None else list(node.children)

    def write(self, where: str, value: str | int) -> None:
        """Set one value; parents are made where they are missing."""
        self.write_all({where: value})

    def write_all(self, values: Mapping[str, str | int], owners: Mapping[str, Iterable[str]] | None = None) -> None:
        """Set permissions (``{"/a/b": ["n1", "r0"]}``) and then values, all or nothing for who watches.

        A node named in ``owners`` is made if it's missing; new nodes below inherit its permissions.
        """
        transaction = Transaction(self.store.tree, steps=None)
        for where, entries in (owners or {}).items():
            self._do(transaction, _making(_path(where)))
            self._do(transaction, _giving(_path(where), perms.parse([entry.encode() for entry in entries])))
        for where, value in values.items():
            self._do(transaction, _writing(_path(where), str(value).encode()))
        self._run(lambda: self.store.commit(transaction))

    def remove(self, where: str) -> None:
        """Remove the node and all below; no error if it's missing."""
        target = _path(where)

        def apply(tree: Tree, generation: int) -> Tree:
            return tree if tree.find(target) is None else operations.remove(tree, _DOM0, target, generation)

        self._run(lambda: self.store.change(Change(target, apply, removal=True)))

    def watch(self, where: str, callback: Callable[[str], None]) -> Subscription:
        """Call ``callback`` with the path that has changed, once at the start too."""
        self._count += 1
        watch = Watch(path.parse_watched(where.encode(), 0), b"%d" % self._count)
        subscription = Subscription(self, watch, callback)
        self.store.watch(subscription, watch)
        self._run(lambda: subscription.deliver(watch, watch.path))
        return subscription

    def settle(self) -> None:
        """Run the callbacks that wait."""
        self._run(lambda: None)

    def queue(self, callback: Callable[[str], None], where: str) -> None:
        """Remember that ``callback`` is to be called."""
        if (callback, where) not in self._queue:
            self._queue.append((callback, where))
        if not self._busy:
            self._wake()

    def _run(self, action: Callable[[], None]) -> None:
        self._busy += 1
        try:
            action()
            while self._busy == 1 and self._queue:
                callback, where = self._queue.popleft()
                callback(where)
        finally:
            self._busy -= 1

    def _do(self, transaction: Transaction, change: Change) -> None:
        transaction.change(change, self.store.next_generation())


@dataclass(eq=False, slots=True)
class Subscription:
    """A watch set by ``Local.watch``."""

    local: Local
    watch: Watch
    callback: Callable[[str], None]
    closed: bool = False

    @property
    def caller(self) -> Caller:
        return _DOM0

    def deliver(self, watch: Watch, changed: Path) -> None:
        """Queue the callback."""
        self.local.queue(self._call, path.text(changed))

    def close(self) -> None:
        """Hear no more, not even what is queued."""
        self.closed = True
        self.local.store.forget(self)

    def _call(self, changed: str) -> None:
        if not self.closed:
            self.callback(changed)


def _path(where: str) -> Path:
    if not where.startswith("/"):
        raise XsError(Error.EINVAL, where)
    return path.parse(where.encode(), 0)


def _writing(where: Path, value: bytes) -> Change:
    def apply(tree: Tree, generation: int) -> Tree:
        if tree.find(where) is not None:
            return tree.set_value(where, value, generation)
        return tree.create(where, value, tree.nearest(where)[1].perms, generation)

    return Change(where, apply)


def _making(where: Path) -> Change:
    def apply(tree: Tree, generation: int) -> Tree:
        if tree.find(where) is not None:
            return tree
        return tree.create(where, b"", tree.nearest(where)[1].perms, generation)

    return Change(where, apply)


def _giving(where: Path, new: perms.Perms) -> Change:
    def apply(tree: Tree, generation: int) -> Tree:
        return tree.set_perms(where, new, generation)

    return Change(where, apply)

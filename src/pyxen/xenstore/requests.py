"""What each message means: its payload taken apart, the operation, the reply's payload."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pyxen.abi.xs_wire import (
    FEATURE_ERROR,
    FEATURE_RECONNECTION,
    FEATURE_WATCH_DEPTH,
    PAYLOAD_MAX,
    Error,
    Op,
)
from pyxen.xenstore import operations, path, perms
from pyxen.xenstore.errors import XsError
from pyxen.xenstore.path import Path
from pyxen.xenstore.transaction import Aspect, Change, Transaction
from pyxen.xenstore.tree import Node, Tree
from pyxen.xenstore.watch import Watch

if TYPE_CHECKING:
    from pyxen.xenstore.connection import Connection

_OK = b"OK\0"
_DOMID_FIRST_RESERVED = 0x7FF0
_Handler = Callable[["Connection", Transaction | None, bytes], bytes]


def answer(connection: Connection, op: int, tx: int, payload: bytes) -> bytes:
    """Do what is asked, return the reply's payload. Raises XsError."""
    if op == Op.TRANSACTION_END:
        return _transaction_end(connection, tx, payload)
    handler = _HANDLERS.get(op)
    if handler is None:
        raise XsError(Error.ENOSYS)
    if op in _PRIVILEGED and not connection.caller.privileged:
        raise XsError(Error.EACCES)
    transaction = connection.transactions.get(tx)
    if tx and transaction is None:
        raise XsError(Error.ENOENT)
    return handler(connection, transaction, payload)


def _strings(payload: bytes, count: int | None = None) -> list[bytes]:
    """The strings of a payload, each ended by NUL; exactly ``count``, or at least one."""
    if not payload.endswith(b"\0"):
        raise XsError(Error.EINVAL)
    strings = payload[:-1].split(b"\0")
    if count is not None and len(strings) != count:
        raise XsError(Error.EINVAL)
    return strings


def _number(raw: bytes, limit: int = 1 << 32) -> int:
    if not raw.isdigit() or len(raw) > 10 or int(raw) >= limit:
        raise XsError(Error.EINVAL)
    return int(raw)


def _domid(raw: bytes) -> int:
    return _number(raw, _DOMID_FIRST_RESERVED)


def _look(connection: Connection, transaction: Transaction | None, where: Path, aspect: Aspect) -> Node:
    if transaction is not None:
        transaction.see(where, aspect)
    tree = connection.store.tree if transaction is None else transaction.tree
    return operations.look(tree, connection.caller, where)


def _change(connection: Connection, transaction: Transaction | None, change: Change) -> bytes:
    if transaction is None:
        connection.store.change(change)
    else:
        transaction.change(change, connection.store.next_generation())
    return _OK


def _path(connection: Connection, raw: bytes) -> Path:
    return _checked(connection, path.parse(raw, connection.domid))


def _watched(connection: Connection, raw: bytes) -> Path:
    return _checked(connection, path.parse_watched(raw, connection.domid))


def _checked(connection: Connection, where: Path) -> Path:
    if connection.domid != 0 and len(where) > connection.store.quota.depth:
        raise XsError(Error.EINVAL, "path too deep")
    return where


def _directory(connection: Connection, transaction: Transaction | None, payload: bytes) -> bytes:
    (raw,) = _strings(payload, 1)
    node = _look(connection, transaction, _path(connection, raw), Aspect.NAMES)
    return _names(node)


def _names(node: Node) -> bytes:
    return b"".join(name.encode() + b"\0" for name in node.children)


def _directory_part(connection: Connection, transaction: Transaction | None, payload: bytes) -> bytes:
    """A directory too long for one message, from a byte offset on; the generation tells whether it has changed."""
    raw, offset = _strings(payload, 2)
    node = _look(connection, transaction, _path(connection, raw), Aspect.NAMES)
    names, start = _names(node), _number(offset)
    head = b"%d\0" % node.generation
    rest = names[start:]
    room = PAYLOAD_MAX - len(head) - 1
    if len(rest) <= room:
        return head + rest + b"\0"
    return head + rest[: rest.rindex(b"\0", 0, room) + 1]


def _read(connection: Connection, transaction: Transaction | None, payload: bytes) -> bytes:
    (raw,) = _strings(payload, 1)
    return _look(connection, transaction, _path(connection, raw), Aspect.VALUE).value


def _get_perms(connection: Connection, transaction: Transaction | None, payload: bytes) -> bytes:
    (raw,) = _strings(payload, 1)
    where = _watched(connection, raw)
    special = connection.store.special.get(where)
    if special is not None and not connection.caller.privileged:
        raise XsError(Error.EACCES)
    found = special or _look(connection, transaction, where, Aspect.PERMS).perms
    return b"".join(entry.encode() + b"\0" for entry in found.wire())


def _set_perms(connection: Connection, transaction: Transaction | None, payload: bytes) -> bytes:
    raw, *entries = _strings(payload)
    where = _watched(connection, raw)
    new = perms.parse(entries)
    caller, quota = connection.caller, connection.store.quota
    if where in connection.store.special:
        if not caller.privileged:
            raise XsError(Error.EACCES)
        connection.store.special[where] = new
        return _OK

    def apply(tree: Tree, generation: int) -> Tree:
        return operations.set_perms(tree, caller, where, new, quota, generation)

    return _change(connection, transaction, Change(where, apply))


def _write(connection: Connection, transaction: Transaction | None, payload: bytes) -> bytes:
    raw, nul, value = payload.partition(b"\0")
    if not nul:
        raise XsError(Error.EINVAL)
    where = _path(connection, raw)
    caller, quota = connection.caller, connection.store.quota

    def apply(tree: Tree, generation: int) -> Tree:
        return operations.write(tree, caller, where, value, quota, generation)

    return _change(connection, transaction, Change(where, apply))


def _mkdir(connection: Connection, transaction: Transaction | None, payload: bytes) -> bytes:
    (raw,) = _strings(payload, 1)
    where = _path(connection, raw)
    caller, quota = connection.caller, connection.store.quota

    def apply(tree: Tree, generation: int) -> Tree:
        return operations.mkdir(tree, caller, where, quota, generation)

    return _change(connection, transaction, Change(where, apply))


def _rm(connection: Connection, transaction: Transaction | None, payload: bytes) -> bytes:
    (raw,) = _strings(payload, 1)
    where = _path(connection, raw)
    caller = connection.caller

    def apply(tree: Tree, generation: int) -> Tree:
        return operations.remove(tree, caller, where, generation)

    return _change(connection, transaction, Change(where, apply, removal=True))


def _watch(connection: Connection, _: Transaction | None, payload: bytes) -> bytes:
    raw, token, *rest = _at_least_two(payload)
    if len(rest) > 1:
        raise XsError(Error.EINVAL)
    where = _watched(connection, raw)
    relative = not raw.startswith((b"/", b"@"))
    watch = Watch(where, token, _number(rest[0]) if rest else None, relative)
    connection.store.watch(connection, watch)
    connection.deliver(watch, where)
    return _OK


def _unwatch(connection: Connection, _: Transaction | None, payload: bytes) -> bytes:
    raw, token = _strings(payload, 2)
    connection.store.unwatch(connection, _watched(connection, raw), token)
    return _OK


def _at_least_two(payload: bytes) -> list[bytes]:
    strings = _strings(payload)
    if len(strings) < 2:
        raise XsError(Error.EINVAL)
    return strings


def _reset_watches(connection: Connection, _: Transaction | None, payload: bytes) -> bytes:
    connection.forget_watches()
    return _OK


def _transaction_start(connection: Connection, transaction: Transaction | None, payload: bytes) -> bytes:
    if transaction is not None:
        raise XsError(Error.EBUSY)
    return b"%d\0" % connection.begin()


def _transaction_end(connection: Connection, tx: int, payload: bytes) -> bytes:
    if payload not in (b"T\0", b"F\0"):
        raise XsError(Error.EINVAL)
    transaction = connection.transactions.pop(tx, None)
    if transaction is None:
        raise XsError(Error.ENOENT)
    if payload == b"T\0":
        connection.store.commit(transaction)
    return _OK


def _introduce(connection: Connection, _: Transaction | None, payload: bytes) -> bytes:
    domid, _gfn, _port = _strings(payload, 3)
    connection.store.introduce(_domid(domid))
    return _OK


def _release(connection: Connection, _: Transaction | None, payload: bytes) -> bytes:
    (domid,) = _strings(payload, 1)
    connection.store.release(_domid(domid))
    return _OK


def _get_domain_path(connection: Connection, _: Transaction | None, payload: bytes) -> bytes:
    (domid,) = _strings(payload, 1)
    return path.text(path.home(_domid(domid))).encode() + b"\0"


def _is_introduced(connection: Connection, _: Transaction | None, payload: bytes) -> bytes:
    (domid,) = _strings(payload, 1)
    return b"T\0" if _domid(domid) in connection.store.introduced else b"F\0"


def _resume(connection: Connection, _: Transaction | None, payload: bytes) -> bytes:
    """Nothing marks a domain as shut down here, so there is nothing to take back."""
    (domid,) = _strings(payload, 1)
    if _domid(domid) not in connection.store.introduced:
        raise XsError(Error.ENOENT)
    return _OK


def _set_target(connection: Connection, _: Transaction | None, payload: bytes) -> bytes:
    domid, target = (_domid(raw) for raw in _strings(payload, 2))
    if {domid, target} - connection.store.introduced or 0 in (domid, target):
        raise XsError(Error.ENOENT)
    connection.store.targets[domid] = target
    return _OK


def _control(connection: Connection, _: Transaction | None, payload: bytes) -> bytes:
    command, *_rest = _strings(payload)
    if command == b"help":
        return b"help\nquota\n\0"
    if command == b"quota":
        tree = connection.store.tree
        lines = (f"domain {domid}: {nodes} nodes\n" for domid, nodes in sorted(tree.owned.items()))
        return "".join(lines).encode() + b"\0"
    raise XsError(Error.EINVAL)


def _get_feature(connection: Connection, _: Transaction | None, payload: bytes) -> bytes:
    return b"%d\0" % (FEATURE_RECONNECTION | FEATURE_ERROR | FEATURE_WATCH_DEPTH)


_HANDLERS: dict[int, _Handler] = {
    Op.CONTROL: _control,
    Op.DIRECTORY: _directory,
    Op.READ: _read,
    Op.GET_PERMS: _get_perms,
    Op.WATCH: _watch,
    Op.UNWATCH: _unwatch,
    Op.TRANSACTION_START: _transaction_start,
    Op.INTRODUCE: _introduce,
    Op.RELEASE: _release,
    Op.GET_DOMAIN_PATH: _get_domain_path,
    Op.WRITE: _write,
    Op.MKDIR: _mkdir,
    Op.RM: _rm,
    Op.SET_PERMS: _set_perms,
    Op.IS_DOMAIN_INTRODUCED: _is_introduced,
    Op.RESUME: _resume,
    Op.SET_TARGET: _set_target,
    Op.RESET_WATCHES: _reset_watches,
    Op.DIRECTORY_PART: _directory_part,
    Op.GET_FEATURE: _get_feature,
}

_PRIVILEGED = {
    Op.CONTROL,
    Op.INTRODUCE,
    Op.RELEASE,
    Op.RESUME,
    Op.SET_TARGET,
    Op.GET_FEATURE,
    Op.IS_DOMAIN_INTRODUCED,
}

"""xenstore as one tree, as Xen has it, out of the stores that the domains' processes keep (xenstore_map says whose).

xend keeps nothing itself: each call asks the stores that it concerns, at the same time where there are several. A
store that does not answer is left out of what all have together.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence

import msgspec

from pyxen import api
from pyxen.abi.xs_text import escape, unescape
from pyxen.abi.xs_wire import PAYLOAD_MAX, Error, Op
from pyxen.errors import Conflict, EngineError, InvalidRequest, NotFound, PyxenError, ResourceExhausted, Unsupported
from pyxen.xend.xenstore_map import Node, Place, Whose, boundary, made_up, merged, owner
from pyxen.xenstore import path as paths
from pyxen.xenstore.aio import AsyncStoreClient, connect
from pyxen.xenstore.errors import XsError
from pyxen.xenstore.path import Path

_MOST_NODES = 50_000
"""In one listing of one domain's store."""
_ATTEMPTS = 10
_NAME = re.compile(r"[A-Za-z0-9\-_@]+")
_PERMISSION = re.compile(r"[nrwb][0-9]{1,5}")


class Xenstore:
    """``places`` tells which domains run now; ``changes`` gives something each time that they may have changed."""

    def __init__(self, places: Callable[[], Sequence[Place]], changes: Callable[[], AsyncIterator[object]]) -> None:
        self._places = places
        self._changes = changes

    async def node(self, path: str) -> api.StoreNode:
        """Raises NotFound and InvalidRequest, as all of these do."""
        where = _parse(path)
        nodes = await self._gather(where, _one)
        if where not in nodes:
            raise NotFound(f"xenstore has no {paths.text(where)}")
        return _shown(where, nodes[where])

    async def tree(self, path: str) -> api.StoreTree:
        """The node and all below it, each before its children."""
        where = _parse(path)
        nodes = await self._gather(where, _all_below)
        if where not in nodes:
            raise NotFound(f"xenstore has no {paths.text(where)}")
        found, waiting = [], [where]
        while waiting:
            each = waiting.pop()
            if (node := nodes.get(each)) is not None:
                found.append(_shown(each, node))
                waiting.extend((*each, name) for name in reversed(node.names))
        return api.StoreTree(found)

    async def write(self, values: Mapping[str, str]) -> None:
        """Set values (escaped), making nodes that are missing; all or none of those in one domain's store."""
        by_place: dict[Place, list[tuple[Path, bytes]]] = {}
        for path, value in values.items():
            where = _parse(path)
            data = unescape(value)
            if len(_raw(where)) + len(data) > PAYLOAD_MAX:
                raise InvalidRequest(f"{path}: the value is longer than a message of xenstore's ({PAYLOAD_MAX} bytes)")
            by_place.setdefault(self._writable(where), []).append((where, data))
        for place, entries in by_place.items():
            requests = [(Op.WRITE, _raw(where) + data) for where, data in entries]
            await self._transact(place, entries[0][0], requests)

    async def remove(self, path: str, *, tidy: bool) -> None:
        """Remove a node with all below it; no error if it is missing."""
        where = _parse(path)
        place = self._writable(where)
        async with _store(place) as store:
            _check(await store.ask([(Op.RM, _raw(where))]), where)
            while tidy and len(where) > boundary(where):
                where = where[:-1]
                value, names = await store.ask([(Op.READ, _raw(where)), (Op.DIRECTORY, _raw(where))])
                if value != b"" or names != b"":
                    break
                _check(await store.ask([(Op.RM, _raw(where))]), where)

    async def set_permissions(
        self, path: str, permissions: Sequence[str], *, recurse: bool = False, upwards: bool = False
    ) -> None:
        """``permissions`` as on the wire: the owner's first."""
        where = _parse(path)
        if not permissions or not all(_PERMISSION.fullmatch(each) for each in permissions):
            raise InvalidRequest(
                f"{' '.join(permissions) or 'nothing'} is no list of permissions",
                hint="A letter (n, r, w, b) and a domain's id each, the owner's first: n0 r5",
            )
        place = self._writable(where)
        targets = [where]
        if upwards:
            targets += [where[:depth] for depth in range(len(where) - 1, boundary(where) - 1, -1)]
        if recurse:
            async with _store(place) as store:
                targets += [each for each in await _all_below(store, where) if each != where]
        entries = b"".join(each.encode() + b"\0" for each in permissions)
        await self._transact(place, where, [(Op.SET_PERMS, _raw(target) + entries) for target in targets])

    def watch(self, watched: Sequence[str]) -> AsyncGenerator[bytes, None]:
        """Lines of StoreEvent: each path once at the start, then what changes at or below it. Raises InvalidRequest."""
        if not watched:
            raise InvalidRequest("no path to watch was given")
        return self._follow({each: _parse(each, watched=True) for each in watched})

    # Reading

    async def _gather(self, where: Path, read: _Read) -> Mapping[Path, Node]:
        places = self._places()
        whose = owner(where, places)
        if whose is Whose.NOBODY:
            return {}
        invented = {each: node for each, node in made_up(places).items() if each[: len(where)] == where}
        asked = [whose] if isinstance(whose, Place) else places
        parts = await asyncio.gather(
            *(self._ask(place, where, read, places) for place in asked if place.socket is not None),
            return_exceptions=whose is Whose.ALL,
        )
        nodes: dict[Path, list[Node]] = {each: [node] for each, node in invented.items()}
        for part in parts:
            if isinstance(part, BaseException):
                if not isinstance(part, PyxenError):
                    raise part
                continue
            for each, node in part.items():
                nodes.setdefault(each, []).append(node)
        return {each: whole for each, found in nodes.items() if (whole := merged(found)) is not None}

    async def _ask(self, place: Place, where: Path, read: _Read, places: Sequence[Place]) -> Mapping[Path, Node]:
        """What one domain's store has, without what it has no say in."""
        async with _store(place) as store:
            nodes = await read(store, where)

        def its_own(path: Path) -> bool:
            return owner(path, places) in (Whose.ALL, place)

        for path, node in nodes.items():
            node.names = [name for name in node.names if its_own((*path, name))]
        return {path: node for path, node in nodes.items() if its_own(path)}

    # Writing

    def _writable(self, where: Path) -> Place:
        """The domain whose store has ``where``. Raises Conflict and Unsupported."""
        whose = owner(where, self._places())
        if not isinstance(whose, Place):
            raise Conflict(
                f"{paths.text(where)} is in no running domain's part of xenstore",
                hint="Those are /local/domain/ID, /vm/UUID and /local/domain/0/backend/KIND/ID.",
            )
        if whose.socket is None:
            raise Unsupported(
                f"QEMU runs '{whose.name}': what xenstore shows of it can't be changed",
                hint="Domains with engine=xen have a store of their own.",
            )
        return whose

    async def _transact(self, place: Place, where: Path, requests: Sequence[tuple[Op, bytes]]) -> None:
        async with _store(place) as store:
            for _ in range(_ATTEMPTS):
                try:
                    async with store.transaction() as tx:
                        for reply in await store.ask(requests, tx=tx):
                            if isinstance(reply, XsError):
                                raise reply
                    return
                except XsError as error:
                    if error.error is not Error.EAGAIN:
                        raise _refusal(error, where) from error
        raise Conflict(f"{paths.text(where)} changes too fast to be written in one step", hint="Try it again.")

    # Watching

    async def _follow(self, watched: Mapping[str, Path]) -> AsyncGenerator[bytes, None]:
        # When it is full nobody reads on, and a store merges what waits.
        queue: asyncio.Queue[tuple[str, str] | None] = asyncio.Queue(256)
        tasks: dict[Place, asyncio.Task[None]] = {}
        there = set(self._places())

        def listen(place: Place) -> None:
            if place.socket is not None:
                tasks[place] = asyncio.create_task(self._listen(place, watched, queue))

        async def look() -> None:
            nonlocal there
            async for _ in self._changes():
                now = set(self._places())
                come, gone = now - there, there - now
                there = now
                for place in gone:
                    if (task := tasks.pop(place, None)) is not None:
                        task.cancel()
                for place in come:
                    listen(place)
                for changed, special in ((come, "@introduceDomain"), (gone, "@releaseDomain")):
                    for place in changed:
                        for event in _of_life(place, special, watched):
                            await queue.put(event)
            await queue.put(None)

        for place in there:
            listen(place)
        looking = asyncio.create_task(look())
        try:
            for each in watched:
                yield _event(each, each)
            while (event := await queue.get()) is not None:
                yield _event(*event)
        finally:
            looking.cancel()
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(looking, *tasks.values(), return_exceptions=True)

    async def _listen(
        self, place: Place, watched: Mapping[str, Path], queue: asyncio.Queue[tuple[str, str] | None]
    ) -> None:
        places = self._places()
        said = {
            paths.text(path): each
            for each, path in watched.items()
            if not each.startswith("@") and owner(path, places) in (Whose.ALL, place)
        }
        if not said:
            return
        # A store that goes away is seen by its domain's end.
        with contextlib.suppress(PyxenError, XsError):
            async with _store(place) as store:
                async for changed, path in store.watch(list(said)):
                    where = _parse(changed)
                    if owner(where, places) in (Whose.ALL, place):
                        await queue.put((changed, said[path]))


_Read = Callable[[AsyncStoreClient, Path], Awaitable[dict[Path, Node]]]


def _parse(path: str, *, watched: bool = False) -> Path:
    """Raises InvalidRequest. A relative path is Domain-0's, as for Xen's own tools."""
    try:
        raw = path.encode()
        return paths.parse_watched(raw, 0) if watched else paths.parse(raw, 0)
    except (XsError, UnicodeError):
        raise InvalidRequest(
            f"{path[:80]!r} is no path in xenstore", hint="Names of letters, digits, - _ and @, with / between them."
        ) from None


def _raw(where: Path) -> bytes:
    return paths.text(where).encode() + b"\0"


def _shown(where: Path, node: Node) -> api.StoreNode:
    return api.StoreNode(paths.text(where), escape(node.value), node.perms, node.names)


def _event(changed: str, watched: str) -> bytes:
    return msgspec.json.encode(api.StoreEvent(changed, watched)) + b"\n"


def _of_life(place: Place, special: str, watched: Mapping[str, Path]) -> Iterable[tuple[str, str]]:
    """The events of a domain that has come or gone."""
    for each, path in watched.items():
        if each.startswith("@"):
            if each == special:
                yield each, each
        elif place.home[: len(path)] == path:
            yield paths.text(place.home), each
        elif path[: len(place.home)] == place.home:
            yield each, each


@contextlib.asynccontextmanager
async def _store(place: Place) -> AsyncIterator[AsyncStoreClient]:
    assert place.socket is not None
    async with connect(place.socket) as store:
        yield store


def _strings(payload: bytes) -> list[str]:
    return [part.decode("utf-8", "replace") for part in payload.split(b"\0")[:-1]]


async def _one(store: AsyncStoreClient, where: Path) -> dict[Path, Node]:
    return await _read(store, [where])


async def _read(store: AsyncStoreClient, wanted: Sequence[Path], *, tx: int = 0) -> dict[Path, Node]:
    """Those of ``wanted`` that are there."""
    requests = [(op, _raw(where)) for where in wanted for op in (Op.READ, Op.GET_PERMS, Op.DIRECTORY)]
    replies = await store.ask(requests, tx=tx)
    found = {}
    for index, where in enumerate(wanted):
        value, perms, names = replies[3 * index : 3 * index + 3]
        if isinstance(names, XsError) and names.error is Error.E2BIG:
            names = await _long_list(store, where, tx)
        if isinstance(value, bytes) and isinstance(perms, bytes) and isinstance(names, bytes):
            known = [name for name in _strings(names) if _NAME.fullmatch(name)]
            found[where] = Node(value, _strings(perms), known)
    return found


async def _long_list(store: AsyncStoreClient, where: Path, tx: int) -> bytes:
    """The names of more children than one message holds."""
    names = b""
    while not names.endswith(b"\0\0") and names != b"\0":
        part = await store.request(Op.DIRECTORY_PART, _raw(where) + b"%d\0" % len(names), tx=tx)
        names += part.partition(b"\0")[2]
        if len(names) > _MOST_NODES * 64:
            raise EngineError(f"{paths.text(where)} has too many children to be listed")
    return names[:-1]


async def _all_below(store: AsyncStoreClient, where: Path) -> dict[Path, Node]:
    """A node and all below it, as they were at one moment."""
    found: dict[Path, Node] = {}
    with contextlib.suppress(XsError):  # the transaction changes nothing, so how it ends does not matter
        async with store.transaction() as tx:
            level = [where]
            while level:
                nodes = await _read(store, level, tx=tx)
                found |= nodes
                level = [(*path, name) for path, node in nodes.items() for name in node.names]
                if len(found) + len(level) > _MOST_NODES:
                    raise EngineError(f"{paths.text(where)} has more than {_MOST_NODES} nodes")
    return found


def _check(replies: Sequence[bytes | XsError], where: Path) -> None:
    for reply in replies:
        if isinstance(reply, XsError):
            raise _refusal(reply, where) from reply


def _refusal(error: XsError, where: Path) -> PyxenError:
    path = paths.text(where)
    if error.error is Error.ENOENT:
        return NotFound(f"xenstore has no {path}")
    if error.error is Error.EINVAL:
        return InvalidRequest(f"xenstore refuses {path}: it makes no sense there (EINVAL)")
    if error.error is Error.ENOSPC:
        return ResourceExhausted(f"xenstore refuses {path}: its domain's quota is used up (ENOSPC)")
    return Conflict(f"xenstore refuses {path} ({error.error.name})")

"""One tree out of several domains' stores, which are real ones on real sockets."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest

from pyxen.abi.xs_text import escape
from pyxen.errors import Conflict, InvalidRequest, NotFound, Unavailable, Unsupported
from pyxen.hypervisor.loop import Loop
from pyxen.xend.xenstore import Xenstore
from pyxen.xend.xenstore_map import Place
from pyxen.xenstore.listener import Listener
from pyxen.xenstore.local import Local
from pyxen.xenstore.store import Store

pytestmark = pytest.mark.anyio


class Domain:
    """A domain's process, as far as xenstore goes."""

    def __init__(self, folder: Path, domid: int, name: str) -> None:
        self.place = Place(domid, f"uuid-{domid}", name, folder / f"{domid}.sock")
        self.loop = Loop()
        store = Store()
        self.local = Local(store)
        home, vm = f"/local/domain/{domid}", f"/vm/uuid-{domid}"
        guest = [f"n{domid}"]
        self.local.write_all(
            {
                f"{home}/name": name,
                f"{home}/domid": domid,
                f"{vm}/name": name,
                f"/local/domain/0/backend/vbd/{domid}/51712/state": 4,
            },
            {home: ["n0", f"r{domid}"], f"{home}/data": guest},
        )
        assert self.place.socket is not None
        self.listener = Listener(self.place.socket, store, self.loop.selector)
        self.loop.after_each_round(self.listener.flush)
        self.thread = threading.Thread(target=self.loop.run)
        self.thread.start()

    def close(self) -> None:
        self.loop.stop()
        self.thread.join()
        self.listener.close()
        self.loop.close()


QEMU = Place(5, "uuid-5", "windows", None, 262144, 2)


class Host:
    def __init__(self, folder: Path) -> None:
        self.web, self.db = Domain(folder, 12, "web"), Domain(folder, 7, "db")
        self.places = [self.web.place, QEMU, self.db.place]
        self.news: asyncio.Queue[None] = asyncio.Queue()
        self.xenstore = Xenstore(lambda: list(self.places), self.changes)

    async def changes(self) -> AsyncIterator[object]:
        while True:
            await self.news.get()
            yield None

    async def read(self, path: str) -> str:
        return (await self.xenstore.node(path)).value

    async def names(self, path: str) -> list[str]:
        return (await self.xenstore.node(path)).children


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    yield host
    host.web.close()
    host.db.close()


async def test_the_trunk_is_one(host: Host) -> None:
    assert sorted(await host.names("/")) == ["local", "tool", "vm"]
    assert await host.names("/local/domain") == ["0", "5", "7", "12"]
    assert sorted(await host.names("/vm")) == ["uuid-12", "uuid-5", "uuid-7"]
    assert await host.names("/tool") == []
    assert await host.names("/local/domain/0/backend/vbd") == ["7", "12"]
    assert await host.read("name") == "Domain-0"
    assert await host.read("/local/domain/0/backend/vbd/7/51712/state") == "4"


async def test_each_domain_is_asked_for_its_own(host: Host) -> None:
    assert await host.read("/local/domain/12/name") == "web"
    assert await host.read("/local/domain/7/name") == "db"
    assert await host.read("/vm/uuid-12/name") == "web"
    assert (await host.xenstore.node("/local/domain/7")).permissions == ["n0", "r7"]
    for path in ("/local/domain/9", "/local/domain/9/name", "/vm/x", "/local/domain/12/nothing", "/foo"):
        with pytest.raises(NotFound, match="xenstore has no"):
            await host.xenstore.node(path)
    for path in ("", "a b", "/a//b", "/" + "x" * 4000):
        with pytest.raises(InvalidRequest):
            await host.xenstore.node(path)


async def test_what_a_domain_says_of_others_is_not_believed(host: Host) -> None:
    host.web.local.write_all(
        {"/local/domain/7/name": "fake", "/vm/uuid-7/name": "fake", "/local/domain/99/name": "fake"}
    )
    assert await host.read("/local/domain/7/name") == "db"
    assert await host.names("/local/domain") == ["0", "5", "7", "12"]
    assert "fake" not in [node.value for node in (await host.xenstore.tree("/")).nodes]


async def test_a_tree_has_each_node_before_its_children(host: Host) -> None:
    nodes = (await host.xenstore.tree("/")).nodes
    paths = [node.path for node in nodes]
    assert len(paths) == len(set(paths))
    for path in paths[1:]:
        assert paths.index(path.rpartition("/")[0] or "/") < paths.index(path)
    assert {"/local/domain/12/data", "/local/domain/5/memory/target", "/vm/uuid-7/name"} <= set(paths)
    below = (await host.xenstore.tree("/local/domain/7")).nodes
    assert below[0].path == "/local/domain/7"
    assert all(node.path.startswith("/local/domain/7") for node in below)


async def test_long_listings_come_whole(host: Host) -> None:
    names = [f"a-rather-long-name-{number}" for number in range(400)]
    host.web.local.write_all({f"/local/domain/12/data/{name}": name for name in names})
    assert await host.names("/local/domain/12/data") == names
    assert len((await host.xenstore.tree("/local/domain/12/data")).nodes) == 401


async def test_a_domain_under_qemu_is_shown_and_cannot_be_changed(host: Host) -> None:
    assert await host.read("/local/domain/5/name") == "windows"
    assert await host.read("/local/domain/5/memory/target") == "262144"
    assert await host.names("/local/domain/5/cpu") == ["0", "1"]
    with pytest.raises(Unsupported, match="QEMU runs 'windows'"):
        await host.xenstore.write({"/local/domain/5/name": "x"})


async def test_writing(host: Host) -> None:
    every_byte = bytes(range(256))
    await host.xenstore.write(
        {"/local/domain/12/data/a/b": escape(every_byte), "/local/domain/7/data/c": "", "/local/domain/12/data/d": "1"}
    )
    assert await host.read("/local/domain/12/data/a/b") == escape(every_byte)
    assert host.db.local.read("/local/domain/7/data/c") == ""
    with pytest.raises(InvalidRequest):
        await host.xenstore.write({"/local/domain/12/data/e": "1", "/local/domain/12/data/f": "x" * 4096})
    assert host.web.local.read("/local/domain/12/data/e") is None
    for path in ("/foo", "/local/domain/0/name", "/local/domain/9/name", "/tool/x", "/"):
        with pytest.raises(Conflict, match="no running domain"):
            await host.xenstore.write({path: "x"})


async def test_removing(host: Host) -> None:
    await host.xenstore.write({"/local/domain/12/data/a/b/c": "", "/local/domain/12/data/x": "1"})
    await host.xenstore.remove("/local/domain/12/data/a/b/c", tidy=True)
    assert host.web.local.read("/local/domain/12/data/a") is None
    assert host.web.local.read("/local/domain/12/data/x") == "1"
    await host.xenstore.remove("/local/domain/12/data/nothing", tidy=False)
    with pytest.raises(NotFound):
        await host.xenstore.remove("/local/domain/12/no/such/parent", tidy=False)
    with pytest.raises(Conflict):
        await host.xenstore.remove("/local/domain", tidy=False)


async def test_permissions(host: Host) -> None:
    await host.xenstore.write({"/local/domain/12/data/a/b": "1"})
    await host.xenstore.set_permissions("/local/domain/12/data/a", ["n0", "b12"], recurse=True)
    assert (await host.xenstore.node("/local/domain/12/data/a/b")).permissions == ["n0", "b12"]
    assert (await host.xenstore.node("/local/domain/12/data")).permissions == ["n12"]
    await host.xenstore.set_permissions("/local/domain/12/data/a", ["r0"], upwards=True)
    assert (await host.xenstore.node("/local/domain/12")).permissions == ["r0"]
    for wrong in ([], ["x0"], ["n"], ["n0\0"]):
        with pytest.raises(InvalidRequest):
            await host.xenstore.set_permissions("/local/domain/12/data", wrong)
    with pytest.raises(NotFound):
        await host.xenstore.set_permissions("/local/domain/12/nothing", ["n0"])


async def test_a_store_that_is_gone_is_left_out_or_said_to_be(host: Host, tmp_path: Path) -> None:
    host.places.append(Place(20, "uuid-20", "dying", tmp_path / "nobody.sock"))
    assert "12" in await host.names("/local/domain")
    with pytest.raises(Unavailable):
        await host.xenstore.node("/local/domain/20/name")


class Watcher:
    def __init__(self, host: Host, *paths: str) -> None:
        self.lines: AsyncGenerator[bytes, None] = host.xenstore.watch(paths)
        self.paths = paths

    async def next(self) -> tuple[str, str]:
        found = msgspec.json.decode(await asyncio.wait_for(anext(self.lines), 20))
        return found["path"], found["watched"]

    async def __aenter__(self) -> Watcher:
        assert [(await self.next())[0] for _ in self.paths] == list(self.paths)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.lines.aclose()


async def seen(watcher: Watcher, host: Host, path: str) -> None:
    """Write until the watch, which is set by and by, has seen it."""
    pending = asyncio.ensure_future(watcher.next())
    while not pending.done():
        await host.xenstore.write({path: "1"})
        await asyncio.wait((pending,), timeout=0.05)
    assert pending.result()[0] == path


async def test_a_watch_sees_changes_of_every_domain(host: Host) -> None:
    async with Watcher(host, "/local/domain") as watcher:
        await seen(watcher, host, "/local/domain/12/data/a")
        await seen(watcher, host, "/local/domain/7/data/b")


async def test_a_watch_sees_domains_come_and_go(host: Host, tmp_path: Path) -> None:
    late = Domain(tmp_path, 21, "late")
    try:
        async with Watcher(
            host, "/local/domain", "@introduceDomain", "@releaseDomain", "/local/domain/21/data"
        ) as watcher:
            host.places.append(late.place)
            host.news.put_nowait(None)
            come = {await watcher.next() for _ in range(3)}
            assert come == {
                ("/local/domain/21", "/local/domain"),
                ("@introduceDomain", "@introduceDomain"),
                ("/local/domain/21/data", "/local/domain/21/data"),
            }
            host.places.remove(late.place)
            host.news.put_nowait(None)
            gone = {await watcher.next() for _ in range(3)}
            assert ("@releaseDomain", "@releaseDomain") in gone
            assert ("/local/domain/21", "/local/domain") in gone
    finally:
        late.close()


async def test_what_cannot_be_watched(host: Host) -> None:
    for wrong in ((), ("a b",), ("/ok", "@nonsense")):
        with pytest.raises(InvalidRequest):
            host.xenstore.watch(wrong)

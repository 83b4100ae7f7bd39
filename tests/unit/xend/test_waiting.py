"""What waits to become a clone, with the stand-in for guests and real files for disks."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from pyxen.api import PowerState
from pyxen.engine.fake import FakeDomain, FakeEngine
from pyxen.errors import Conflict, EngineError
from pyxen.snapshot_api import CloneRequest
from pyxen.xend import clones, waiting
from pyxen.xend.life import Life
from pyxen.xend.waiting import Waiter
from tests.unit.xend.conftest import Xend
from tests.unit.xend.test_life import Boot, gone, until
from tests.unit.xend.test_snapshots import Killed, disk, stop_at, with_snapshot

__all__ = ["disk"]

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "_REST_S", 0.0)


async def with_clone(xend: Xend, disk: Path, *, wait: int = 1, managed: bool = False) -> list[Waiter]:
    """``web``, its snapshot ``base``, and ``one``, a clone of that; what waits to be the next one."""
    await with_snapshot(xend, disk, managed=managed)
    await xend.domains.clone("web", CloneRequest("one", "base"))
    await until(lambda: xend.domains.snapshots.waiting.count == wait)
    return [waiter for queue in xend.domains.snapshots.waiting._queues.values() for waiter in queue.ready]


def files(xend: Xend) -> list[str]:
    return sorted(os.listdir(xend.life.roots.disks))


def folders(xend: Xend) -> list[str]:
    return sorted(os.listdir(xend.life.roots.domains))


def runs(pid: int) -> bool:
    """Is there such a process, and is it more than a name for its parent to hear of?"""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


async def test_a_clone_is_what_has_waited(boot: Boot, disk: Path) -> None:
    xend = await boot(clones_waiting=1)
    (waiter,) = await with_clone(xend, disk)
    assert waiter.process.paused
    assert (xend.domains.host().clones_waiting, folders(xend)) == (1, ["1", "2", "3"])
    assert [domain.name for domain in xend.domains.list()] == ["Domain-0", "one", "web"]
    two = await xend.domains.clone("web", CloneRequest("two", "base", managed=True))
    assert (two.domid, two.uuid, two.pid) == (3, waiter.spec.uuid, waiter.process.pid)
    assert (two.power_state, two.managed) == (PowerState.RUNNING, True)
    spec = xend.process("two").spec
    target = Path(spec.config.disk[0].target)
    assert (spec.config.name, target.name, target.read_bytes()) == ("two", "two-xvdb.img", b"before")
    assert spec.waking is not None
    assert two.config is not None
    assert (two.config.name, two.config.disk[0].target) == ("two", str(target))
    await until(lambda: xend.domains.snapshots.waiting.count == 1)
    assert files(xend) == ["+waiting+4-xvdb.img", "one-xvdb.img", "two-xvdb.img"]
    three = await xend.domains.clone("web", CloneRequest("three", "base", paused=True))
    assert (three.domid, three.power_state) == (4, PowerState.PAUSED)
    stored = {record.name: record for record in await xend.life.store.records()}
    assert {name: record.domid for name, record in stored.items()} == {"web": 1, "one": 2, "two": 3, "three": 4}
    assert stored["two"].config.disk[0].target == str(target)


async def test_a_template_is_kept_while_clones_are_taken(boot: Boot, disk: Path) -> None:
    xend = await boot(clones_waiting=1)
    await with_clone(xend, disk)
    ((folder, before),) = xend.domains.snapshots.templates._timers.items()
    await xend.domains.clone("web", CloneRequest("two", "base"))
    assert before.cancelled()
    assert xend.domains.snapshots.templates._timers[folder].when() > before.when()


async def test_what_goes_wrong_stays_in_the_log(boot: Boot, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    xend = await boot(clones_waiting=1)
    monkeypatch.setattr(clones, "_size", lambda *_: 1 / 0)
    await with_clone(xend, disk, wait=0)
    await until(lambda: "ZeroDivisionError" in xend.life.roots.log.read_text())
    await xend.domains.clone("web", CloneRequest("two", "base"))


async def test_disks_that_take_much_are_not_copied_in_advance(
    boot: Boot, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clones, "_MOST_COPIED", 4095)
    xend = await boot(clones_waiting=1)
    await with_clone(xend, disk, wait=0)
    await xend.domains.clone("web", CloneRequest("two", "base"))
    await asyncio.sleep(0.05)
    assert (xend.domains.snapshots.waiting.count, folders(xend)) == (0, ["1", "2", "3"])


async def test_a_later_xend_has_the_clone(boot: Boot, disk: Path) -> None:
    xend = await boot(clones_waiting=1)
    await with_clone(xend, disk)
    await xend.domains.clone("web", CloneRequest("two", "base"))
    await until(lambda: xend.domains.snapshots.waiting.count == 1)
    await xend.die()
    again = await boot()
    two = again.process("two")
    assert (two.domid, two.paused, Path(two.spec.config.disk[0].target).name) == (3, False, "two-xvdb.img")
    assert files(again) == ["one-xvdb.img", "two-xvdb.img"]
    assert folders(again) == ["1", "2", "3"]


async def test_none_wait_where_none_are_wanted(boot: Boot, disk: Path) -> None:
    xend = await boot()
    await with_clone(xend, disk, wait=0)
    await asyncio.sleep(0.05)
    assert folders(xend) == ["1", "2"]
    await xend.domains.snapshots.waiting.close()
    more = await boot(clones_waiting=2)
    await more.domains.clone("web", CloneRequest("two", "base"))
    await until(lambda: more.domains.snapshots.waiting.count == 2)


@pytest.mark.parametrize("how", ["removed", "forgotten", "stopping", "let go of"])
async def test_they_go_with_their_template(boot: Boot, disk: Path, how: str) -> None:
    xend = await boot(clones_waiting=2)
    waiters = await with_clone(xend, disk, wait=2, managed=how == "forgotten")
    snapshots = xend.domains.snapshots
    match how:
        case "removed":
            await snapshots.remove("web", "base")
        case "forgotten":
            await xend.domains.destroy("web")
            await xend.domains.delete("web")
        case "stopping":
            await snapshots.waiting.close()
        case _:
            snapshots.templates.drop(next(iter(xend.life.roots.snapshots.glob("*/base"))))
    await xend.life.settle()
    assert snapshots.waiting.count == 0
    assert not any(runs(waiter.process.pid) for waiter in waiters)
    assert files(xend) == ["one-xvdb.img"]
    assert not {"3", "4"} & set(folders(xend))


async def test_they_go_when_memory_is_short(boot: Boot, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "_LOOK_S", 0.01)
    xend = await boot(clones_waiting=1)
    await with_clone(xend, disk)
    monkeypatch.setattr(waiting, "read_memory", lambda: {"MemAvailable": 100})
    await until(lambda: folders(xend) == ["1", "2"])
    await xend.domains.clone("web", CloneRequest("two", "base"))
    await asyncio.sleep(0.05)
    assert folders(xend) == ["1", "2", "4"]
    assert files(xend) == ["one-xvdb.img", "two-xvdb.img"]


async def test_one_that_has_died_is_done_without(boot: Boot, disk: Path) -> None:
    xend = await boot(clones_waiting=1)
    (waiter,) = await with_clone(xend, disk)
    os.kill(waiter.process.pid, signal.SIGKILL)
    await until(lambda: waiter.process.stopped is not None)
    two = await xend.domains.clone("web", CloneRequest("two", "base"))
    assert two.domid == 4
    await until(lambda: xend.domains.snapshots.waiting.count == 1)
    await xend.life.settle()
    assert files(xend) == ["+waiting+5-xvdb.img", "one-xvdb.img", "two-xvdb.img"]
    assert folders(xend) == ["1", "2", "4", "5"]


async def test_one_that_cannot_be_started_is_done_without(
    boot: Boot, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    xend = await boot(clones_waiting=1)
    start, refused = FakeEngine.start, asyncio.Event()

    async def refuse(self: FakeEngine, *arguments: object, **keys: object) -> object:
        if keys["paused"]:
            refused.set()
            raise EngineError("not today")
        return await start(self, *arguments, **keys)  # type: ignore[arg-type]

    monkeypatch.setattr(FakeEngine, "start", refuse)
    await with_clone(xend, disk, wait=0)
    await asyncio.wait_for(refused.wait(), 20)
    await xend.domains.clone("web", CloneRequest("two", "base"))
    await xend.domains.snapshots.waiting.close()
    assert files(xend) == ["one-xvdb.img", "two-xvdb.img"]


async def test_one_that_cannot_be_named_leaves_nothing(boot: Boot, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    xend = await boot(clones_waiting=1)
    (waiter,) = await with_clone(xend, disk)
    stale = xend.life.roots.disks / "two-xvdb.img"
    stale.write_bytes(b"somebody's")
    with pytest.raises(Conflict, match=r"there is .*two-xvdb.img, of an earlier domain"):
        await xend.domains.clone("web", CloneRequest("two", "base"))
    assert stale.read_bytes() == b"somebody's"
    assert files(xend) == ["one-xvdb.img", "two-xvdb.img"]
    assert not runs(waiter.process.pid)
    assert gone(xend, "two")
    await xend.domains.clone("web", CloneRequest("three", "base"))
    await until(lambda: xend.domains.snapshots.waiting.count == 1)

    async def refuse(*_arguments: object, **_keys: object) -> None:
        raise EngineError("not today")

    with monkeypatch.context() as patch:
        patch.setattr(FakeDomain, "become", refuse)
        with pytest.raises(EngineError, match="not today"):
            await xend.domains.clone("web", CloneRequest("four", "base"))
    assert files(xend) == ["one-xvdb.img", "three-xvdb.img", "two-xvdb.img"]
    assert folders(xend) == ["1", "2", "4"]
    assert [record.name for record in await xend.life.store.records()] == ["web", "one", "three"]


async def test_two_clones_at_once(boot: Boot, disk: Path) -> None:
    xend = await boot(clones_waiting=1)
    await with_clone(xend, disk)
    both = (xend.domains.clone("web", CloneRequest(name, "base")) for name in ("two", "three"))
    made = await asyncio.gather(*both)
    assert len({each.domid for each in made} | {each.uuid for each in made}) == 4
    same = (xend.domains.clone("web", CloneRequest("four", "base")) for _ in range(2))
    done = await asyncio.gather(*same, return_exceptions=True)
    assert sorted(type(each).__name__ for each in done) == ["Conflict", "Domain"]


STEPS = [
    (type(None), "", "while it waits"),
    (waiting, "_rename", "before its files have their names"),
    (FakeDomain, "become", "before it goes on"),
    (Life, "keep", "before it is known to run"),
]


@pytest.mark.parametrize(("owner", "name", "_when"), STEPS, ids=[when for _, _, when in STEPS])
async def test_a_xend_killed_leaves_nothing(
    boot: Boot, disk: Path, monkeypatch: pytest.MonkeyPatch, owner: object, name: str, _when: str
) -> None:
    xend = await boot(clones_waiting=1)
    (waiter,) = await with_clone(xend, disk)
    pid = waiter.process.pid
    with monkeypatch.context() as patch:
        if name:
            stop_at(patch, owner, name)
            stop_at(patch, Life, "undo")
            patch.setattr(Path, "unlink", lambda *_arguments, **_keys: None)
            with pytest.raises(Killed):
                await xend.domains.clone("web", CloneRequest("two", "base"))
        waiter.process.close()
        await xend.die()
    again = await boot()
    assert [domain.name for domain in again.domains.list()] == ["Domain-0", "one", "web"]
    assert not runs(pid)
    assert folders(again) == ["1", "2"]
    assert files(again) == ["one-xvdb.img"]
    assert (xend.life.roots.disks / "one-xvdb.img").read_bytes() == b"before"

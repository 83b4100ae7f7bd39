"""Domains that go from one xend to another, with the stand-in for guests."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from pyxen import api
from pyxen.config.model import Disk, DiskFormat, PciDevice, UsbDevice, UsbType
from pyxen.engine.contract import Limits
from pyxen.engine.fake import FakeDomain, FakeEngine
from pyxen.errors import Conflict, EngineError, PyxenError, ResourceExhausted, Unavailable, Unsupported
from pyxen.xend import steps
from pyxen.xend.migration import fit
from pyxen.xend.store import Phase, Record
from tests.unit.xend.conftest import describe
from tests.unit.xend.migration.conftest import Side
from tests.unit.xend.test_life import create, until

pytestmark = pytest.mark.anyio
Pair = tuple[Side, Side]


async def migrate(source: Side, to: Side, **options: object) -> api.Migrated | None:
    """The whole of it; raises what its last step reports."""
    request = api.MigrateRequest(host="127.0.0.1", port=to.port, **options)  # type: ignore[arg-type]
    last = None
    async for step in await source.xend.domains.migration.outgoing.migrate("web", request):
        last = step
    assert last is not None
    assert last.done
    return last.migrated


async def test_a_domain_goes_there_and_back(pair: Pair) -> None:
    one, other = pair
    await create(one.xend)
    uuid = one.xend.domains.get("web").uuid
    live = one.xend.life.registry.live[uuid]
    live.spec = msgspec.structs.replace(live.spec, slots={"balloon": 17})
    told: list[str] = []
    other.xend.life.on_restored[:] = [lambda live: told.append(live.spec.config.name)]
    done = await migrate(one, other)
    assert done is not None
    assert told == ["web"]
    assert other.xend.process("web").spec.slots["balloon"] == 17
    assert (done.name, done.host, done.domid) == ("web", "127.0.0.1", 1)
    assert 0 < done.downtime_s < done.total_s
    assert (one.knows(), other.runs()) == (False, True)
    assert other.xend.domains.get("web").uuid == uuid
    assert one.xend.kinds()[-2:] == ["domain-migrated", "domain-ended"]
    assert other.xend.kinds()[-1] == "domain-arrived"
    await migrate(other, one, live=False)
    assert (one.runs(), other.knows()) == (True, False)
    await until(lambda: not one.xend.domains.migration.incoming._links)
    for side in pair:
        database = sqlite3.connect(side.roots.database)
        assert database.execute("SELECT key FROM meta WHERE key LIKE 'arrived:%'").fetchall() == []
        database.close()


async def test_what_a_domain_has_of_its_host_keeps_it_there(pair: Pair, tmp_path: Path) -> None:
    one, other = pair
    stick = tmp_path / "stick.img"
    stick.write_bytes(bytes(512))
    await create(one.xend, usbdev=(UsbDevice(type=UsbType.DISK, target=str(stick)),))
    with pytest.raises(Unsupported, match="as a USB disk, which no copy is made of") as caught:
        await migrate(one, other)
    assert caught.value.hint == "First: xm usb-detach web 0"
    live = one.xend.life.registry.live[one.xend.domains.get("web").uuid]
    config = msgspec.structs.replace(live.spec.config, pci=(PciDevice("0000:03:00.0"),))
    live.spec = msgspec.structs.replace(live.spec, config=config)
    with pytest.raises(Unsupported, match=r"has the host's PCI device 0000:03:00\.0.*nor moved"):
        await migrate(one, other)
    assert (one.runs(), other.knows()) == (True, False)


async def test_a_paused_domain_arrives_paused(pair: Pair) -> None:
    one, other = pair
    await create(one.xend)
    await one.xend.domains.pause("web")
    await migrate(one, other)
    assert other.xend.domains.get("web").power_state is api.PowerState.PAUSED


async def test_one_that_runs_there_has_arrived_though_it_cannot_be_written_down(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = pair
    await create(one.xend)
    change, refused = other.xend.life.records.change, []

    async def full(record: Record, meta: object = None, **values: object) -> None:
        if values.get("intended", "") is None:
            refused.append(record.name)
            raise ResourceExhausted("no room")
        await change(record, **values)  # type: ignore[arg-type]

    monkeypatch.setattr(other.xend.life.records, "change", full)
    with pytest.raises(EngineError, match="was lost when it had been given 'web'"):
        await migrate(one, other)
    await until(lambda: not one.knows())
    assert refused == ["web"]
    assert not other.xend.process("web").paused
    await other.deaf()
    await other.xend.die()
    await other.start()
    await until(lambda: other.xend.life.registry.find("web").intended is None)
    assert other.runs()


async def test_a_managed_domain_is_managed_there_and_gone_here(pair: Pair) -> None:
    one, other = pair
    await one.xend.domains.create(api.CreateRequest(config=describe("web"), managed=True))
    await one.xend.domains.start("web", paused=False)
    await migrate(one, other)
    assert not one.knows()
    assert [record.name for record in await one.xend.life.store.records()] == []
    assert other.xend.domains.get("web").managed
    await migrate(other, one)
    assert one.xend.domains.get("web").managed


async def test_what_does_not_fit_is_said_before_anything_is_sent(pair: Pair, tmp_path: Path) -> None:
    one, other = pair
    disk = tmp_path / "web.img"
    disk.write_bytes(bytes(4096))
    await create(one.xend, disk=(Disk(vdev="hda", target=str(disk), format=DiskFormat.RAW),))
    await create(other.xend)
    with pytest.raises(Conflict, match=r"'web' does not fit on 127.0.0.1") as refused:
        await migrate(one, other)
    assert refused.value.hint == "name       Domain 'web' already exists with ID '1'"
    assert (one.runs(), other.runs()) == (True, True)
    await other.xend.domains.destroy("web")
    assert await migrate(one, other, dry=True) is None
    assert (one.runs(), other.knows()) == (True, False)
    assert list(tmp_path.iterdir()) == [disk]
    await migrate(one, other)
    assert other.xend.process("web").spec.config.disk[0].target == str(disk)


def test_files_are_compared_by_what_lies_beside_them(tmp_path: Path) -> None:
    here, there = tmp_path / "a", tmp_path / "b"
    for folder in (here, there):
        folder.mkdir()
        (folder / "d").write_bytes(bytes(512))
    with fit.files([Disk(vdev="hda", target=str(here / "d"), format=DiskFormat.RAW)]) as (fact,):
        assert (fact.size, fact.writable) == (512, True)
        assert list(fit._file(fact)) == []
        assert fact.token is not None
        strange = msgspec.structs.replace(fact, token=fact.token + "x")
        assert "is another file" in next(fit._file(strange))
        (here / "d").write_bytes(bytes(1024))
        assert list(fit._file(fact)) == [f"{here}/d has 1024 bytes, not 512"]
        (here / "d").unlink()
        assert "No such file" in next(fit._file(fact))
    assert list(here.iterdir()) == []


def test_a_cpu_that_lacks_something_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nflags\t\t: sse2 avx fpu\n")
    assert fit.cpu_flags("kvm", tmp_path / "cpuinfo") == ["avx", "fpu", "sse2"]
    assert fit.cpu_flags("tcg", tmp_path / "cpuinfo") == []


async def test_nobody_listens_there(pair: Pair) -> None:
    one, other = pair
    await create(one.xend)
    await other.deaf()
    with pytest.raises(Unavailable, match="can't be reached on port") as refused:
        await migrate(one, other)
    assert "relocation" in str(refused.value.hint)
    assert one.runs()


async def test_a_stranger_is_turned_away_on_either_side(pair: Pair) -> None:
    one, other = pair
    await create(one.xend)
    other.xend.domains.migration.peers.remove("other")
    with pytest.raises(PyxenError, match=r"does not trust this one|connection broke"):
        await migrate(one, other)
    assert one.runs()
    mine, theirs = one.xend.domains.migration.peers, other.xend.domains.migration.peers
    theirs.add("other", mine.own())
    mine.remove("other")
    with pytest.raises(Conflict, match="no other xend is trusted"):
        await migrate(one, other)
    mine.add("myself", mine.own())
    with pytest.raises(Conflict, match="shows a certificate that is not trusted here"):
        await migrate(one, other)
    assert (one.runs(), other.knows()) == (True, False)


async def test_a_guest_that_can_not_be_sent_goes_on(pair: Pair) -> None:
    one, other = pair
    await create(one.xend, extra="fake.dumpless", kernel="/dev/null")
    with pytest.raises(EngineError, match="has no state"):
        await migrate(one, other)
    assert one.runs()
    assert one.xend.life.registry.find("web").intended is None
    await until(lambda: not other.knows())


async def test_a_host_that_can_not_start_it_says_why(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = pair
    await create(one.xend)

    async def refuse(*_arguments: object, **_keys: object) -> FakeDomain:
        raise EngineError("no room in the stable")

    monkeypatch.setattr(FakeEngine, "start", refuse)
    with pytest.raises(EngineError, match=r"127.0.0.1 can't take 'web': no room in the stable"):
        await migrate(one, other)
    assert (one.runs(), other.knows()) == (True, False)


async def test_a_migration_can_be_called_off(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = pair
    await create(one.xend)
    never = asyncio.Event()

    async def endless(process: FakeDomain, stream: int, limits: Limits, *_rest: object) -> None:
        await process.freeze()
        await never.wait()

    monkeypatch.setattr(FakeDomain, "send_live", endless)
    outgoing = one.xend.domains.migration.outgoing
    for way in ("cancel", "leave", "destroy"):
        moving = await outgoing.migrate("web", api.MigrateRequest(host="127.0.0.1", port=other.port))
        following = asyncio.ensure_future(anext(moving))
        await following
        await until(lambda: one.xend.process("web").paused)
        with pytest.raises(Conflict, match="is being migrated already"):
            await outgoing.migrate("web", api.MigrateRequest(host="127.0.0.1", port=other.port))
        match way:
            case "cancel":
                record = one.xend.life.registry.find("web")
                await asyncio.gather(outgoing.cancel("web"), outgoing.interrupt(record.uuid))  # twice is once
                with pytest.raises(Conflict, match="was called off"):
                    await anext(moving)
            case "leave":
                await moving.aclose()
            case "destroy":
                await one.xend.domains.destroy("web")
                await moving.aclose()
        assert one.runs() is (way != "destroy")
        await until(lambda: not other.knows())
    with pytest.raises(PyxenError):
        await outgoing.cancel("web")


BEFORE = {"offered", "sending", "sent", "given", "invited", "receiving", "loaded"}
"""Where a break leaves the domain with the host that it was on."""


@pytest.mark.parametrize("step", steps.OUTGOING + steps.INCOMING)
async def test_a_broken_connection_leaves_it_on_exactly_one_side(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    one, other = pair
    await create(one.xend)
    monkeypatch.setenv("PYXEN_FAULT", f"{step}:cut")
    with contextlib.suppress(PyxenError):
        await migrate(one, other)
    await until(lambda: one.runs() != other.runs() and one.knows() != other.knows())
    assert "PYXEN_FAULT" not in os.environ
    assert one.runs() is (step in BEFORE)
    for side in pair:
        record = side.xend.life.registry.named("web")
        assert record is None or (record.phase, record.intended) == (Phase.RUNNING, None)
    # What is left can go on, wherever it is.
    source, to = pair if one.runs() else (other, one)
    await migrate(source, to)
    assert (source.knows(), to.runs()) == (False, True)


class Killed(BaseException):
    """In place of SIGKILL: nothing is tidied up."""


@pytest.mark.parametrize("step", steps.OUTGOING + steps.INCOMING)
async def test_a_killed_xend_leaves_it_on_exactly_one_side(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """The xend that reaches the step stands still there for ever; another one starts on its root."""
    one, other = pair
    await create(one.xend)
    victim = one if step in steps.OUTGOING else other
    dead, buried = asyncio.Event(), asyncio.Event()

    def hang(place: str, cut: Callable[[], None]) -> None:
        if place == step:
            cut()
            dead.set()
            raise Killed

    _no_tidying(monkeypatch, victim, dead, buried)
    with monkeypatch.context() as patch:
        for module in ("outgoing", "incoming"):
            patch.setattr(f"pyxen.xend.migration.{module}.reached", hang)
        trying = asyncio.create_task(migrate(one, other))
        await asyncio.wait_for(dead.wait(), 20)
    await victim.deaf()
    await victim.xend.die()
    await victim.start()
    await until(lambda: one.runs() != other.runs() and one.knows() != other.knows())
    # A commit that was received, but not written down, is none.
    assert one.runs() is (step in {*BEFORE, "accepted"})
    buried.set()
    await asyncio.gather(trying, return_exceptions=True)


def _no_tidying(monkeypatch: pytest.MonkeyPatch, victim: Side, dead: asyncio.Event, buried: asyncio.Event) -> None:
    """What the victim would write or order after its death is not: whatever wants to waits until the test's end."""

    async def rest() -> None:
        await buried.wait()
        raise asyncio.CancelledError

    def guard(owner: object, name: str) -> None:
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *values, **keys: rest() if dead.is_set() else real(*values, **keys))

    for name in ("save", "delete", "set_meta", "begin_build"):
        guard(victim.xend.life.store, name)
    for live in victim.xend.life.registry.live.values():
        guard(live.process, "thaw")


def test_every_step_has_a_name_of_its_own() -> None:
    migrating = (*steps.OUTGOING, *steps.COPYING, *steps.INCOMING, *steps.MADE)
    named = {*migrating, *steps.SAVE, *steps.CHECKPOINT, *steps.SNAPSHOT, *steps.REVERT, *steps.WAIT, *steps.CLONE}
    sources = "".join(path.read_text() for path in Path(steps.__file__).parent.rglob("*.py"))
    assert sorted(re.findall(r'reached\("([a-z-]+)"', sources)) == sorted(named)

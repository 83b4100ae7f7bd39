"""Snapshots and clones, with the stand-in for guests and real files for disks."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path

import pytest

from pyxen.api import CreateRequest, PowerState
from pyxen.config.model import Disk, DiskAccess, DiskFormat, Vif
from pyxen.engine.fake import FakeDomain, FakeEngine
from pyxen.engine.template import Template
from pyxen.errors import Conflict, EngineError, InvalidRequest, NotFound, ResourceExhausted, Unsupported
from pyxen.snapshot_api import CloneRequest, RevertRequest, SnapshotRequest
from pyxen.xend import copies, saving, snapshot_files, snapshots
from pyxen.xend.life import Life
from pyxen.xend.store import Phase
from tests.unit.xend.conftest import Xend, describe
from tests.unit.xend.test_life import Boot, create, gone, until

pytestmark = pytest.mark.anyio
BASE = SnapshotRequest("base")


class Killed(BaseException):
    """SIGKILL, as near as a test in the same process gets."""


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "data.img"
    path.write_bytes(b"before")
    return path


def of(disk: Path, **keys: object) -> Disk:
    return Disk(vdev="xvdb", target=str(disk), format=DiskFormat.RAW, **keys)  # type: ignore[arg-type]


async def with_snapshot(xend: Xend, disk: Path, *, managed: bool = False, **keys: object) -> None:
    """``web``, which has changed its disk since the snapshot ``base``."""
    config = describe("web", disk=(of(disk),), **keys)
    await xend.domains.create(CreateRequest(config=config, managed=managed))
    if managed:
        await xend.domains.start("web", paused=False)
    await xend.domains.snapshots.create("web", BASE)
    disk.write_bytes(b"after, and longer")


def left(xend: Xend) -> list[str]:
    """What there is below the snapshots' folder, in order."""
    root = xend.life.roots.snapshots
    return sorted(str(path.relative_to(root)).partition("/")[2] for path in root.rglob("*") if path.is_file())


async def test_a_snapshot_is_whole_and_the_guest_goes_on(boot: Boot, disk: Path) -> None:
    xend = await boot()
    await with_snapshot(xend, disk)
    assert left(xend) == ["base/snapshot.json", "base/state", "base/xvdb"]
    assert not xend.process("web").paused
    (found,) = xend.domains.snapshots.listed("web").snapshots
    assert (found.name, found.domain, found.disks) == ("base", "web", ["xvdb"])
    assert xend.life.registry.find("web").intended is None
    with pytest.raises(Conflict, match="'web' has a snapshot 'base' already"):
        await xend.domains.snapshots.create("web", BASE)
    await xend.domains.pause("web")
    await xend.domains.snapshots.create("web", SnapshotRequest("other"))
    assert xend.process("web").paused
    assert [each.name for each in xend.domains.snapshots.listed().snapshots] == ["base", "other"]
    with pytest.raises(NotFound, match="Domain 'none' does not exist"):
        xend.domains.snapshots.listed("none")


@pytest.mark.parametrize("managed", [False, True])
@pytest.mark.parametrize("ended", [False, True])
async def test_a_revert_brings_disks_and_domain_back(boot: Boot, disk: Path, managed: bool, ended: bool) -> None:
    xend = await boot()
    await with_snapshot(xend, disk, managed=managed)
    uuid = xend.domains.get("web").uuid
    if ended:
        await xend.domains.destroy("web")
    back = await xend.domains.revert("web", "base", RevertRequest(paused=True))
    assert (back.uuid, back.domid, back.managed, back.power_state) == (uuid, 2, managed, PowerState.PAUSED)
    assert disk.read_bytes() == b"before"
    assert os.listdir(disk.parent) == [disk.name]
    assert xend.life.registry.find("web").intended is None
    again = await xend.domains.revert("web", "base", RevertRequest())
    assert (again.domid, again.power_state is PowerState.PAUSED) == (3, False)
    with pytest.raises(NotFound, match="Domain 'web' has no snapshot 'older'"):
        await xend.domains.revert("web", "older", RevertRequest())


async def test_a_renamed_domain_goes_back_under_its_name(boot: Boot, disk: Path) -> None:
    xend = await boot()
    await with_snapshot(xend, disk)
    await xend.domains.rename("web", "shop")
    back = await xend.domains.revert("shop", "base", RevertRequest())
    assert (back.name, xend.process("shop").spec.config.name) == ("shop", "shop")


@pytest.mark.parametrize("part", ["state", "xvdb"])
async def test_what_is_damaged_is_refused_and_the_domain_runs_on(boot: Boot, disk: Path, part: str) -> None:
    xend = await boot()
    await with_snapshot(xend, disk)
    uuid = xend.domains.get("web").uuid
    path = xend.life.roots.snapshots / uuid / "base" / part
    path.write_bytes(path.read_bytes()[:-1])
    for attempt in (
        xend.domains.revert("web", "base", RevertRequest()),
        xend.domains.clone("web", CloneRequest("two", "base")),
    ):
        with pytest.raises(InvalidRequest, match=r"cut off|is damaged"):
            await attempt
    assert xend.domains.get("web").domid == 1
    assert disk.read_bytes() == b"after, and longer"


async def test_what_cannot_be_copied_is_refused_by_its_name(boot: Boot, disk: Path, tmp_path: Path) -> None:
    xend = await boot()
    shared = Disk(vdev="xvdc", target=str(tmp_path / "data.img"), format=DiskFormat.RAW, access=DiskAccess.WRITE_SHARED)
    await create(xend, "shared", disk=(shared,))
    with pytest.raises(Unsupported, match=r"disk xvdc of 'shared' \(.*\) can't be in a snapshot: other domains may"):
        await xend.domains.snapshots.create("shared", BASE)
    base, top = tmp_path / "base.img", tmp_path / "top.qcow2"
    base.write_bytes(bytes(65536))
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", "base.img", str(top)]
    await asyncio.to_thread(subprocess.run, command, check=True, cwd=tmp_path)
    await create(xend, "layered", disk=(Disk(vdev="xvdb", target=str(top), format=DiskFormat.QCOW2),))
    with pytest.raises(Unsupported, match="names the file below it by a way from its own folder") as refused:
        await xend.domains.snapshots.create("layered", BASE)
    assert refused.value.hint is not None
    way_out = refused.value.hint.partition(": ")[2].split(" ")
    await asyncio.to_thread(subprocess.run, way_out, check=True)
    await xend.domains.snapshots.create("layered", BASE)
    assert not xend.process("shared").paused


async def test_one_that_fails_leaves_nothing_and_the_guest_goes_on(
    boot: Boot, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    xend = await boot()
    await create(xend, disk=(of(disk),))

    def full(*_: object) -> int:
        raise ResourceExhausted("no room")

    monkeypatch.setattr(snapshots, "copy_disk", full)
    with pytest.raises(ResourceExhausted, match="no room"):
        await xend.domains.snapshots.create("web", BASE)
    assert list(xend.life.roots.snapshots.iterdir()) == []
    assert not xend.process("web").paused
    assert xend.life.registry.find("web").intended is None


async def test_a_revert_without_room_leaves_the_domain_running(
    boot: Boot, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    xend = await boot()
    await with_snapshot(xend, disk)

    def full(*_: object) -> int:
        raise ResourceExhausted("no room")

    monkeypatch.setattr(snapshot_files, "copy_disk", full)
    with pytest.raises(ResourceExhausted, match="no room"):
        await xend.domains.revert("web", "base", RevertRequest())
    assert (xend.domains.get("web").domid, disk.read_bytes()) == (1, b"after, and longer")
    assert xend.life.registry.find("web").intended is None


async def test_a_clone_has_what_its_source_had_and_files_of_its_own(boot: Boot, disk: Path) -> None:
    xend = await boot()
    vif = Vif(mac="00:16:3e:00:00:01", vifname="uplink")
    await with_snapshot(xend, disk, vif=(vif,))
    first = await xend.domains.clone("web", CloneRequest("one", "base", paused=True, managed=True))
    second = await xend.domains.clone("web", CloneRequest("two"))
    assert xend.domains.get("web").domid == 1
    assert not xend.process("web").paused
    web = xend.domains.get("web")
    assert len({web.uuid, first.uuid, second.uuid}) == 3
    assert (first.managed, second.managed, first.power_state) == (True, False, PowerState.PAUSED)
    assert [each for each in second.warnings if "random numbers" in each]
    disks = [Path(xend.process(name).spec.config.disk[0].target) for name in ("one", "two")]
    assert [path.read_bytes() for path in disks] == [b"before", b"after, and longer"]
    macs = [xend.process(name).spec.config.vif[0].mac for name in ("web", "one", "two")]
    assert len(set(macs)) == 3
    assert xend.process("one").spec.config.vif[0].vifname is None
    assert left(xend) == ["base/snapshot.json", "base/state", "base/xvdb"], "the one for the clone is gone"
    disks[0].write_bytes(b"one's")
    await xend.domains.snapshots.remove("web", "base")
    assert not list(xend.life.roots.snapshots.iterdir())
    assert disks[0].read_bytes() == b"one's"
    (stored,) = [each for each in await xend.life.store.records() if each.name == "one"]
    assert stored.managed


async def test_a_clone_that_cannot_be_leaves_nothing(boot: Boot, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    xend = await boot()
    await with_snapshot(xend, disk)
    with pytest.raises(Conflict, match="'web' already exists"):
        await xend.domains.clone("web", CloneRequest("web", "base"))
    xend.life.roots.disks.mkdir(exist_ok=True)
    stale = xend.life.roots.disks / "two-xvdb.img"
    stale.write_bytes(b"somebody's")
    with pytest.raises(Conflict, match=r"there is .*two-xvdb.img, of an earlier domain"):
        await xend.domains.clone("web", CloneRequest("two", "base"))
    assert stale.read_bytes() == b"somebody's"
    start = FakeEngine.start

    async def refuse(*_arguments: object, **_keys: object) -> FakeDomain:
        raise EngineError("not today")

    monkeypatch.setattr(FakeEngine, "start", refuse)
    with pytest.raises(EngineError, match="not today"):
        await xend.domains.clone("web", CloneRequest("three", "base", managed=True))
    monkeypatch.setattr(FakeEngine, "start", start)
    assert [path.name for path in xend.life.roots.disks.iterdir()] == ["two-xvdb.img"]
    assert [record.name for record in await xend.life.store.records()] == ["web"]
    assert gone(xend, "three")
    assert gone(xend, "two")


async def test_clones_of_a_snapshot_share_its_memory(boot: Boot, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    xend = await boot()
    await with_snapshot(xend, disk, memory=64, maxmem=128)
    start, seen = FakeEngine.start, []

    async def look(*arguments: object, **keys: object) -> object:
        template, state = keys["template"], keys["state"]
        seen.append((template, isinstance(template, Template) and template.full, state is not None))
        return await start(*arguments, **keys)  # type: ignore[arg-type]

    monkeypatch.setattr(FakeEngine, "start", look)
    for name in ("one", "two"):
        await xend.domains.clone("web", CloneRequest(name, "base"))
    (template, full, filled), second = seen
    assert (full, filled, second) == (False, True, (template, True, False))
    assert isinstance(template, Template)
    assert template.size == 128 << 20
    await xend.domains.clone("web", CloneRequest("three"))
    assert seen[2] == (None, False, True), "of what is there once only nothing is kept"
    await xend.domains.snapshots.remove("web", "base")
    with pytest.raises(OSError, match="Bad file descriptor"):
        template.memory()


async def test_two_clones_of_one_name_at_once(boot: Boot, disk: Path) -> None:
    xend = await boot()
    await with_snapshot(xend, disk)
    both = (xend.domains.clone("web", CloneRequest("two", "base")) for _ in range(2))
    done = await asyncio.gather(*both, return_exceptions=True)
    assert sorted(type(each).__name__ for each in done) == ["Conflict", "Domain"]


async def test_snapshots_stay_when_a_domain_ends_and_go_when_it_is_deleted(boot: Boot, disk: Path) -> None:
    xend = await boot()
    await with_snapshot(xend, disk, managed=True)
    await xend.domains.destroy("web")
    assert [each.name for each in xend.domains.snapshots.listed("web").snapshots] == ["base"]
    await xend.domains.delete("web")
    assert xend.domains.snapshots.listed().snapshots == []


def stop_at(monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> None:
    def killed(*_arguments: object, **_keys: object) -> None:
        raise Killed

    monkeypatch.setattr(owner, name, killed)


SNAPSHOT_STEPS = [
    (FakeDomain, "freeze", "before the guest is stopped"),
    (FakeDomain, "save_state", "with the guest stopped"),
    (snapshots, "copy_disk", "before the first disk is copied"),
    (snapshots, "write_file", "before it is described"),
    (snapshots, "sync_folder", "before it has its name"),
]


@pytest.mark.parametrize(("owner", "name", "_when"), SNAPSHOT_STEPS, ids=[when for _, _, when in SNAPSHOT_STEPS])
async def test_a_xend_killed_while_taking_a_snapshot(
    boot: Boot, disk: Path, monkeypatch: pytest.MonkeyPatch, owner: object, name: str, _when: str
) -> None:
    xend = await boot()
    await create(xend, disk=(of(disk),))
    with monkeypatch.context() as patch:
        stop_at(patch, owner, name)
        for cleaning in ((snapshots, "discard"), (saving, "go_on")):
            stop_at(patch, *cleaning)
        with pytest.raises(Killed):
            await xend.domains.snapshots.create("web", BASE)
        await xend.die()
    again = await boot()
    await asyncio.wait_for(again.life.settle(), 30)
    assert left(again) == []
    await until(lambda: not again.process("web").paused)
    assert again.life.registry.find("web").intended is None
    await again.domains.snapshots.create("web", BASE)


REVERT_STEPS = [
    (snapshots, "copy_beside", "before the disks are copied"),
    (Life, "take_down", "after they are copied"),
    (FakeDomain, "destroy", "before the process ends"),
    (Life, "release", "before its folder goes"),
    (snapshots, "put_in_place", "before the disks are replaced"),
    (Life, "build", "after they are replaced"),
    (FakeEngine, "start", "before there is a new process"),
]


@pytest.mark.parametrize("managed", [False, True])
@pytest.mark.parametrize(("owner", "name", "_when"), REVERT_STEPS, ids=[when for _, _, when in REVERT_STEPS])
async def test_a_xend_killed_while_reverting_goes_on_with_it(
    boot: Boot, disk: Path, monkeypatch: pytest.MonkeyPatch, owner: object, name: str, _when: str, managed: bool
) -> None:
    xend = await boot()
    await with_snapshot(xend, disk, managed=managed)
    uuid = xend.domains.get("web").uuid
    with monkeypatch.context() as patch:
        stop_at(patch, owner, name)
        for cleaning in ((Life, "retire"), (Life, "undo"), (type(xend.life.store), "save")):
            if cleaning[1] != "save":
                stop_at(patch, *cleaning)
        change = xend.life.records.change

        async def change_unless_killed(record: object, **values: object) -> None:
            if values.keys() == {"intended"} and not str(values["intended"]).startswith("revert"):
                raise Killed
            await change(record, **values)  # type: ignore[arg-type]

        patch.setattr(xend.life.records, "change", change_unless_killed)
        with pytest.raises(Killed):
            await xend.domains.revert("web", "base", RevertRequest())
        await xend.die()
    again = await boot()
    await asyncio.wait_for(again.life.settle(), 30)
    record = again.life.registry.find(uuid)
    assert (record.phase, record.intended, record.managed) == (Phase.RUNNING, None, managed)
    assert disk.read_bytes() == b"before"
    assert os.listdir(disk.parent) == [disk.name]
    assert not again.process("web").paused


def test_a_copy_keeps_holes_and_refuses_to_replace(tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    with source.open("wb") as file:
        file.write(os.urandom(1 << 21))
        file.seek(64 << 20)
        file.write(b"end")
        file.truncate(128 << 20)
    assert copies.copy_disk(source, target, "raw") == 128 << 20
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_blocks * 512 < 8 << 20
    with pytest.raises(Conflict, match="there is "):
        copies.copy_disk(source, target, "raw")
    with pytest.raises(ResourceExhausted, match="can't be copied"):
        copies.copy_disk(tmp_path / "none", tmp_path / "c", "raw")
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]

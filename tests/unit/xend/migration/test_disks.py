"""Disks that are made and filled on the other side, with the stand-in for guests and a server of the test's own."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from pyxen import api
from pyxen.config.model import Disk, DiskAccess, DiskFormat
from pyxen.engine.contract import COPIES, Limits, Moving, RunningDomain, copy_socket
from pyxen.engine.fake import FakeDomain, FakeEngine
from pyxen.engine.sockets import connect
from pyxen.errors import Conflict, EngineError, PyxenError, ResourceExhausted
from pyxen.xend import steps
from pyxen.xend.migration import fit, wire
from pyxen.xend.migration.disks import Journal
from pyxen.xend.migration.wire import Fact, Offer
from tests.unit.xend.migration.conftest import Side
from tests.unit.xend.migration.test_migration import migrate
from tests.unit.xend.test_life import create, until

pytestmark = pytest.mark.anyio
CONTENT = os.urandom(3_000_000)


def fact(path: Path, **keys: object) -> Fact:
    known = {"size": 1 << 20, "writable": True, "token": "/nowhere", "vdev": "xvda", "format": "raw", **keys}
    return Fact("disk xvda", str(path), **known)  # type: ignore[arg-type]


def test_files_are_made_and_removed_again(tmp_path: Path) -> None:
    raw, qcow2 = tmp_path / "a.img", tmp_path / "b.qcow2"
    journal = Journal(tmp_path / "arriving", "id")
    journal.make([fact(raw), fact(qcow2, format="qcow2", size=1 << 30)])
    assert (raw.stat().st_size, raw.stat().st_mode & 0o777) == (1 << 20, 0o600)
    assert qcow2.read_bytes()[24:32] == (1 << 30).to_bytes(8, "big")
    ((name, found),) = Journal.all(tmp_path / "arriving")
    assert name == "id"
    found.undo()
    assert os.listdir(tmp_path) == ["arriving"]
    assert Journal.all(tmp_path / "arriving") == []


def test_nothing_is_written_over_and_nothing_is_left(tmp_path: Path) -> None:
    old = tmp_path / "b.img"
    old.write_bytes(b"somebody's")
    journal = Journal(tmp_path / "arriving", "id")
    with pytest.raises(ResourceExhausted, match="File exists"):
        journal.make([fact(tmp_path / "a.img"), fact(old)])
    assert old.read_bytes() == b"somebody's"
    assert not (tmp_path / "a.img").exists()
    assert Journal.all(tmp_path / "arriving") == []


def test_what_can_be_copied_is_said_with_what_it_takes(tmp_path: Path) -> None:
    path = tmp_path / "a.img"
    path.write_bytes(bytes(8192))
    disks = [
        Disk(vdev="xvda", target=str(path), format=DiskFormat.RAW),
        Disk(vdev="xvdb", target=str(path), format=DiskFormat.RAW, access=DiskAccess.READ),
        Disk(vdev="xvdc", target=str(path), format=DiskFormat.RAW, access=DiskAccess.WRITE_SHARED),
    ]
    with fit.files(disks, copy=True) as facts:
        assert [each.format for each in facts] == ["raw", "", ""]
        assert (facts[0].size, facts[0].allocated) == (8192, 8192)
        assert fit.copies(offer(facts)) == [], "they are shared"
    assert [each.vdev for each in fit.copies(offer(facts))] == ["xvda"]
    with fit.files(disks) as facts:
        assert {each.format for each in facts} == {""}


def offer(facts: list[Fact]) -> Offer:
    return Offer(
        protocol=1,
        id="",
        head=None,  # type: ignore[arg-type]
        accelerator="",
        paused=False,
        cpu_flags=[],
        files=facts,
    )


class Copied:
    """The disk of "web" as both sides see it: the same path here, another file there."""

    def __init__(self, folder: Path) -> None:
        self.here, self.there = folder / "web.img", folder / "there.img"
        self.here.write_bytes(b"what it was")
        self.servers: list[asyncio.Server] = []
        self.abandoned = 0
        self.ends_at: int | None = None

    def disk(self) -> Disk:
        return Disk(vdev="hda", target=str(self.here), format=DiskFormat.RAW)

    def copies(self, _offer: Offer) -> list[Fact]:
        return [fact(self.there, vdev="hda", size=len(CONTENT))]

    async def serve(self, directory: Path) -> None:
        """As the monitor that waits for its guest."""

        async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with self.there.open("r+b") as file:
                while data := await reader.read(1 << 16):
                    file.write(data)
                    file.flush()
                    writer.write(len(data).to_bytes(4, "big"))
            writer.close()

        self.servers.append(await asyncio.start_unix_server(take, directory / COPIES))

    async def copy(self, directory: Path) -> None:
        """As the monitor that has the guest."""
        reader, writer = await asyncio.open_unix_connection(sock=await connect(directory, copy_socket("hda")))
        writer.write(CONTENT[: self.ends_at])
        taken = 0
        while taken < len(CONTENT[: self.ends_at]):
            taken += int.from_bytes(await reader.readexactly(4), "big")
        writer.close()


@pytest.fixture
async def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Copied]:
    copied = Copied(tmp_path)
    start = FakeEngine.start

    async def started(engine: FakeEngine, spec: object, directory: Path, **keys: object) -> RunningDomain:
        if keys.get("empty_disks"):
            assert keys["empty_disks"] == ("hda",)
            await copied.serve(directory)
        return await start(engine, spec, directory, **keys)  # type: ignore[arg-type]

    async def copy_disk(process: FakeDomain, vdev: str, bandwidth: int | None) -> None:
        assert vdev == "hda"
        await copied.copy(process.directory)

    async def copies(_process: FakeDomain) -> tuple[int, int, bool]:
        if copied.ends_at is not None:
            raise EngineError("disk hda can't be copied: no more of it")
        return len(CONTENT), len(CONTENT), True

    async def abandon(_process: FakeDomain) -> None:
        copied.abandoned += 1

    async def send(
        process: FakeDomain,
        stream: int,
        _limits: Limits,
        progress: Callable[[Moving], None],
        switched: Callable[[], None] | None = None,
    ) -> None:
        await process.freeze()
        assert switched is not None
        switched()
        await process.save_state(stream)
        progress(Moving(0, 0, 1))

    monkeypatch.setattr(FakeEngine, "start", started)
    for name, step in (("copy_disk", copy_disk), ("copies", copies), ("abandon_copies", abandon), ("send_live", send)):
        monkeypatch.setattr(FakeDomain, name, step)
    monkeypatch.setattr(fit, "copies", copied.copies)
    monkeypatch.setattr(fit, "_new_file", lambda _fact, _life: iter(()))
    yield copied
    for server in copied.servers:
        server.close()


async def test_a_disk_goes_first_and_then_the_guest(pair: tuple[Side, Side], copied: Copied) -> None:
    one, other = pair
    await create(one.xend, disk=(copied.disk(),))
    await migrate(one, other, copy_disks=True)
    assert (one.knows(), other.runs()) == (False, True)
    assert copied.there.read_bytes() == CONTENT
    assert Journal.all(other.roots.arriving) == []
    assert copied.abandoned == 0


@pytest.mark.parametrize("step", (*steps.COPYING, *steps.MADE))
async def test_a_broken_connection_leaves_no_copy(
    pair: tuple[Side, Side], copied: Copied, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    one, other = pair
    await create(one.xend, disk=(copied.disk(),))
    monkeypatch.setenv("PYXEN_FAULT", f"{step}:cut")
    with contextlib.suppress(PyxenError):
        await migrate(one, other, copy_disks=True)
    assert "PYXEN_FAULT" not in os.environ
    await until(lambda: one.runs() and not other.knows() and not copied.there.exists())
    assert copied.abandoned == (0 if step in steps.MADE else 1)
    await migrate(one, other, copy_disks=True)
    assert copied.there.read_bytes() == CONTENT


async def test_a_copy_that_fails_is_noticed(pair: tuple[Side, Side], copied: Copied) -> None:
    one, other = pair
    await create(one.xend, disk=(copied.disk(),))
    copied.ends_at = 1_000_000
    with pytest.raises(EngineError, match="no more of it"):
        await migrate(one, other, copy_disks=True)
    assert one.runs()
    await until(lambda: not other.knows() and not copied.there.exists())


async def test_a_later_xend_removes_what_never_arrived(pair: tuple[Side, Side], tmp_path: Path) -> None:
    _, other = pair
    await other.deaf()
    await other.xend.die()
    for name in ("gone", "came"):
        Journal(other.roots.arriving, name).make([fact(tmp_path / name)])
    other.xend.life.store.__init__(other.roots.database)  # type: ignore[misc]
    await other.xend.life.store.open()
    await other.xend.life.store.set_meta("arrived:came", "uuid")
    await other.xend.life.store.close()
    await other.start()
    assert os.listdir(tmp_path) == ["came"]
    assert Journal.all(other.roots.arriving) == []


async def test_only_disks_of_a_domain_that_arrives_are_taken(pair: tuple[Side, Side]) -> None:
    one, other = pair
    context = one.xend.domains.migration.peers.context(server=False)
    link = await wire.connect("127.0.0.1", other.port, context)
    await link.send(wire.Fill(wire.PROTOCOL, "nothing", "hda"))
    with pytest.raises(wire.Broken):
        await link.receive()
    await link.close()


async def test_what_is_there_or_has_no_room_is_said_before(
    pair: tuple[Side, Side], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = pair
    path = tmp_path / "web.img"
    path.write_bytes(bytes(4096))
    monkeypatch.setattr(fit, "_shared", lambda _fact: False)
    await create(one.xend, disk=(Disk(vdev="hda", target=str(path), format=DiskFormat.RAW),))
    with pytest.raises(Conflict) as refused:
        await migrate(one, other, copy_disks=True)
    assert "is there already, and is another file" in str(refused.value.hint)
    wanted = [fact(tmp_path / "new.img", allocated=1 << 60), fact(tmp_path / "none" / "new.img")]
    life = other.xend.life
    assert "MiB free, the copies take" in next(fit._space(wanted[:1], life))
    assert "make it" in next(fit._new_file(wanted[1], life))
    assert list(fit._new_file(wanted[0], life)) == []
    assert isinstance(one.xend.domains.get("web"), api.Domain)
    assert one.runs()

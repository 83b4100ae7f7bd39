"""Saving and restoring, with the stand-in for guests."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import zlib
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyxen.api import CreateRequest, PowerState, RestoreRequest, SaveRequest
from pyxen.engine.contract import RunningDomain
from pyxen.engine.fake import FakeDomain, FakeEngine
from pyxen.errors import Conflict, EngineError, InvalidRequest, NotFound, PyxenError
from pyxen.xend import saved, saving
from pyxen.xend.part import part_path
from pyxen.xend.store import Phase
from tests.unit.xend.conftest import Xend, describe
from tests.unit.xend.test_life import Boot, create, until

pytestmark = pytest.mark.anyio


def _head(**changes: object) -> saved.Head:
    head = saved.Head(
        version=saved.VERSION, save_id="a" * 32, engine="qemu", machine="m", config=describe(), managed=False
    )
    return msgspec.structs.replace(head, **changes)


def _write(path: Path, head: saved.Head, state: bytes) -> bytes:
    out, into = os.pipe()
    os.write(into, state)
    os.close(into)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        assert saved.write(fd, head, out) == path.stat().st_size
    finally:
        os.close(fd)
        os.close(out)
    return path.read_bytes()


def _read(path: Path) -> bytes:
    _, start = saved.read_head(path)
    pieces: list[bytes] = []
    saved.read_state(path, start, lambda piece: pieces.append(bytes(piece)))
    return b"".join(pieces)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path, state = tmp_path / "s", os.urandom(50_000)
    _write(path, _head(), state)
    assert saved.read_head(path)[0] == _head()
    assert _read(path) == state


def test_any_byte_changed_or_missing_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "s"
    whole = _write(path, _head(), b"state" * 100)

    @given(st.integers(0, len(whole) - 1), st.integers(1, 255), st.booleans())
    def damaged(where: int, change: int, cut: bool) -> None:
        path.write_bytes(whole[:where] if cut else whole[:where] + bytes([whole[where] ^ change]) + whole[where + 1 :])
        try:
            found = _read(path)
        except InvalidRequest as error:
            assert re.search("is no saved domain|is cut off|is damaged|newer", str(error))
        else:  # zstd's header has a bit that means nothing, and a size of window that may be any that suffices
            assert not cut
            assert found == b"state" * 100

    damaged()


def test_a_newer_format_is_refused_by_its_number(tmp_path: Path) -> None:
    _write(tmp_path / "s", _head(version=saved.VERSION + 1), b"")
    with pytest.raises(InvalidRequest, match=r"newer pyxen \(format 2, this one reads up to 1\)"):
        saved.read_head(tmp_path / "s")


def test_a_head_that_lacks_something_is_refused(tmp_path: Path) -> None:
    whole = _write(tmp_path / "s", _head(), b"")
    data = b'{"version":1}'
    front = whole[:16] + len(data).to_bytes(4, "little") + zlib.crc32(data).to_bytes(4, "little") + data
    (tmp_path / "s").write_bytes(front + whole[-24:-8] + len(front).to_bytes(8, "little"))
    with pytest.raises(InvalidRequest, match="head that can't be read"):
        saved.read_head(tmp_path / "s")


async def test_a_saved_domain_is_gone_and_comes_back(boot: Boot, tmp_path: Path) -> None:
    xend = await boot()
    await create(xend)
    uuid = xend.domains.get("web").uuid
    path = tmp_path / "web.saved"
    done = await xend.domains.save("web", SaveRequest(path=str(path)))
    assert (done.name, done.disk_bytes) == ("web", path.stat().st_size)
    with pytest.raises(NotFound):
        xend.domains.get("web")
    back = await xend.domains.restore(RestoreRequest(path=str(path), paused=True))
    assert (back.uuid, back.domid, back.power_state) == (uuid, 2, PowerState.PAUSED)
    with pytest.raises(Conflict, match="exists already, with ID '2'"):
        await xend.domains.restore(RestoreRequest(path=str(path)))
    assert list(tmp_path.iterdir()) == [path]


async def test_devices_come_back_in_the_slots_that_they_had(boot: Boot, tmp_path: Path) -> None:
    xend = await boot()
    await create(xend)
    live = next(iter(xend.life.registry.live.values()))
    moved = {**live.spec.slots, "balloon": 17}
    live.spec = msgspec.structs.replace(live.spec, slots=moved)
    await xend.domains.save("web", SaveRequest(path=str(tmp_path / "s")))
    await xend.domains.restore(RestoreRequest(path=str(tmp_path / "s")))
    assert next(iter(xend.life.registry.live.values())).spec.slots == moved


async def test_the_file_describes_the_machine_that_the_guest_has(boot: Boot, tmp_path: Path) -> None:
    xend = await boot()
    await create(xend, vcpus=1, maxvcpus=4, memory=64, maxmem=128)
    await xend.domains.set_vcpus("web", 2)
    await until(lambda: xend.domains.get("web").vcpus == 2)
    await xend.domains.set_maxmem("web", 96)
    path = tmp_path / "web.saved"
    await xend.domains.save("web", SaveRequest(path=str(path)))
    config = saved.read_head(path)[0].config
    assert (config.vcpus, config.maxvcpus, config.memory, config.maxmem) == (2, 4, 64, 128)


async def test_a_checkpoint_lets_the_domain_go_on_as_it_was(boot: Boot, tmp_path: Path) -> None:
    xend = await boot()
    await create(xend)
    request = SaveRequest(path=str(tmp_path / "web.saved"), checkpoint=True)
    for paused in (False, True):
        if paused:
            await xend.domains.pause("web")
        await xend.domains.save("web", request)
        assert xend.process("web").paused is paused
        assert xend.domains.get("web").domid == 1


async def test_a_save_that_fails_leaves_the_domain_and_the_old_file(boot: Boot, tmp_path: Path) -> None:
    xend = await boot()
    await create(xend, extra="fake.dumpless", kernel="/dev/null")
    path = tmp_path / "web.saved"
    path.write_bytes(b"an older one")
    with pytest.raises(PyxenError, match="has no state"):
        await xend.domains.save("web", SaveRequest(path=str(path)))
    assert not xend.process("web").paused
    assert path.read_bytes() == b"an older one"
    assert list(tmp_path.iterdir()) == [path]
    for place, why in (("/nowhere/web", "No such file"), (str(tmp_path), "is a folder")):
        with pytest.raises(InvalidRequest, match=why):
            await xend.domains.save("web", SaveRequest(path=place))


async def test_a_damaged_state_starts_nothing(boot: Boot, tmp_path: Path) -> None:
    xend = await boot()
    await create(xend)
    path = tmp_path / "web.saved"
    await xend.domains.save("web", SaveRequest(path=str(path)))
    data = bytearray(path.read_bytes())
    data[-30] ^= 1  # in the frame's checksum
    path.write_bytes(data)
    with pytest.raises(InvalidRequest, match="is damaged"):
        await xend.domains.restore(RestoreRequest(path=str(path)))
    with pytest.raises(NotFound):
        xend.domains.get("web")


@pytest.mark.parametrize("kind", ["save", "checkpoint"])
@pytest.mark.parametrize("whole", [False, True])
async def test_a_xend_killed_while_saving_ends_or_undoes_it(boot: Boot, tmp_path: Path, whole: bool, kind: str) -> None:
    xend = await boot()
    await create(xend)
    path = tmp_path / "web.saved"
    await xend.domains.save("web", SaveRequest(path=str(path), checkpoint=True))
    save_id = saved.read_head(path)[0].save_id if whole else "b" * 32
    part_path(path, save_id).write_bytes(b"half")
    record = xend.life.registry.find("web")
    record.intended = f"{kind} {save_id} go-on {path}"
    await xend.life.store.save(record)
    await xend.domains.pause("web")
    await xend.die()
    again = await boot()
    await asyncio.wait_for(again.life.settle(), 30)
    assert list(tmp_path.iterdir()) == [path]
    if whole and kind == "save":
        assert "web" not in [domain.name for domain in again.domains.list()]
    else:
        assert again.life.registry.find("web").phase is Phase.RUNNING
        assert again.life.registry.find("web").intended is None
        assert not again.process("web").paused


@pytest.mark.parametrize("checkpoint", [False, True])
async def test_the_record_says_what_a_save_is_for(
    boot: Boot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint: bool
) -> None:
    xend = await boot()
    await create(xend)
    said: list[str | None] = []
    freeze = FakeDomain.freeze

    async def look(process: FakeDomain) -> None:
        said.append(xend.life.registry.find("web").intended)
        await freeze(process)

    monkeypatch.setattr(FakeDomain, "freeze", look)
    await xend.domains.save("web", SaveRequest(path=str(tmp_path / "s"), checkpoint=checkpoint))
    (intended,) = said
    assert str(intended).split(" ")[0] == ("checkpoint" if checkpoint else "save")
    assert str(intended).startswith(saving.KINDS)


async def test_a_guest_that_does_not_go_on_after_a_checkpoint_is_told_of(
    boot: Boot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    xend = await boot()
    await create(xend)

    async def stuck(process: FakeDomain) -> None:
        raise EngineError("it is stuck")

    monkeypatch.setattr(FakeDomain, "thaw", stuck)
    path = tmp_path / "web.saved"
    with pytest.raises(EngineError, match=r"'web' is saved to .*, but doesn't go on: it is stuck") as refused:
        await xend.domains.save("web", SaveRequest(path=str(path), checkpoint=True))
    assert refused.value.hint == "Try: xm unpause web"
    assert _read(path)
    assert xend.life.registry.find("web").intended is None


async def managed_and_saved(xend: Xend, path: Path) -> None:
    await xend.domains.create(CreateRequest(config=describe("web", memory=64), managed=True))
    await xend.domains.start("web", paused=False)
    await xend.domains.save("web", SaveRequest(path=str(path)))


async def test_a_managed_domain_keeps_the_name_that_it_has_got_since(boot: Boot, tmp_path: Path) -> None:
    xend, path = await boot(), tmp_path / "web.saved"
    await managed_and_saved(xend, path)
    await xend.domains.rename("web", "shop")
    back = await xend.domains.restore(RestoreRequest(path=str(path)))
    assert (back.name, xend.life.registry.find("shop").config.name) == ("shop", "shop")
    assert xend.process("shop").spec.config.name == "shop"


async def test_a_restore_that_fails_leaves_the_description_as_it_was(
    boot: Boot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    xend, path = await boot(), tmp_path / "web.saved"
    await managed_and_saved(xend, path)
    await xend.domains.set_memory("web", 32)
    start = FakeEngine.start

    async def refuse(*_arguments: object, **_keys: object) -> RunningDomain:
        raise EngineError("not today")

    monkeypatch.setattr(FakeEngine, "start", refuse)
    with pytest.raises(EngineError, match="not today"):
        await xend.domains.restore(RestoreRequest(path=str(path)))
    monkeypatch.setattr(FakeEngine, "start", start)
    (stored,) = await xend.life.store.records()
    assert (stored.phase, stored.config.memory) == (Phase.HALTED, 32)
    assert xend.life.registry.find("web").config.memory == 32
    await xend.domains.restore(RestoreRequest(path=str(path)))
    assert xend.life.registry.find("web").config.memory == 64


async def test_a_guest_that_goes_on_later_is_told_so(boot: Boot, tmp_path: Path) -> None:
    xend, path = await boot(), tmp_path / "web.saved"
    told: list[str] = []
    xend.life.on_restored[:] = [lambda live: told.append(live.spec.config.name)]
    await create(xend)
    await xend.domains.save("web", SaveRequest(path=str(path)))
    await xend.domains.restore(RestoreRequest(path=str(path), paused=True))
    assert told == []  # it would not hear
    await xend.domains.destroy("web")
    await xend.domains.restore(RestoreRequest(path=str(path)))
    assert told == ["web"]


@pytest.mark.parametrize("intended", ["poweroff", "save", "checkpoint", "migrate", None])
async def test_a_guest_that_ended_while_xend_was_away_is_let_go_whatever_was_meant(
    boot: Boot, tmp_path: Path, intended: str | None
) -> None:
    xend = await boot()
    await create(xend)
    path = tmp_path / "web.saved"
    if intended in ("save", "checkpoint"):
        await xend.domains.save("web", SaveRequest(path=str(path), checkpoint=True))
        intended = f"{intended} {saved.read_head(path)[0].save_id} go-on {path}"
    elif intended == "migrate":
        intended = f"migrate {'c' * 32} go-on 127.0.0.1 8002"
    record = xend.life.registry.find("web")
    await xend.life.records.change(record, intended=intended, config=describe("web", on_crash="destroy"))
    await xend.die()
    os.kill(int((xend.life.directory(1) / "pid").read_text()), signal.SIGKILL)
    (xend.life.directory(1) / "events").unlink()
    again = await boot()
    await asyncio.wait_for(again.life.settle(), 30)
    assert [domain.name for domain in again.domains.list()] == ["Domain-0"]

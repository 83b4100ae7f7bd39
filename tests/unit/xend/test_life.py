"""What becomes of a domain: every end, every action, and every point at which xend may die."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from pyxen.api import CreateRequest, PowerState, ShutdownReason
from pyxen.config.model import Action, Disk, DiskAccess, DiskFormat
from pyxen.engine.process import find
from pyxen.errors import Conflict, EngineError, InvalidRequest, NotFound, ResourceExhausted
from pyxen.xend import life, restarting
from pyxen.xend.store import Origin, Phase
from tests.unit.xend.conftest import Xend, describe

pytestmark = pytest.mark.anyio
Boot = Callable[..., Awaitable[Xend]]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - what is waited for is another process's doing
            await asyncio.sleep(0.005)


def gone(xend: Xend, name: str) -> bool:
    return xend.life.registry.named(name) is None


def running_as(xend: Xend, name: str, domid: int) -> bool:
    record = xend.life.registry.named(name)
    return record is not None and record.domid == domid and record.uuid in xend.life.registry.live


async def create(xend: Xend, name: str = "web", **keys: object) -> None:
    await xend.domains.create(CreateRequest(config=describe(name, **keys)))


async def test_a_created_domain_runs_and_is_listed_after_domain_0(boot: Boot) -> None:
    xend = await boot()
    await create(xend, "b")
    await create(xend, "a")
    assert [(domain.name, domain.domid) for domain in xend.domains.list()] == [("Domain-0", 0), ("a", 2), ("b", 1)]
    assert xend.domains.get("2").name == "a"
    assert xend.domains.get(xend.domains.get("b").uuid).domid == 1


async def test_a_name_wins_over_an_id(boot: Boot) -> None:
    xend = await boot()
    await create(xend, "first")
    await create(xend, "1")
    assert xend.domains.get("1").domid == 2


async def test_a_used_name_is_refused_also_while_it_is_being_built(boot: Boot) -> None:
    xend = await boot()
    done = await asyncio.gather(*(create(xend, "web") for _ in range(3)), return_exceptions=True)
    assert sorted(type(each).__name__ for each in done) == ["Conflict", "Conflict", "NoneType"]
    with pytest.raises(InvalidRequest, match="Domain-0"):
        await create(xend, "Domain-0")


async def test_a_console_can_be_waited_for_while_its_domain_is_being_built(boot: Boot) -> None:
    xend = await boot()
    building = asyncio.create_task(create(xend))
    await until(lambda: (found := xend.life.registry.named("web")) and found.phase is Phase.BUILDING)
    with pytest.raises(Conflict):
        xend.domains.console("web")
    await xend.domains.built("web")
    assert xend.domains.console("web").reason is None
    await xend.domains.built("web")
    await building


async def test_poweroff_ends_a_transient_domain_and_its_folder(boot: Boot) -> None:
    xend = await boot()
    await create(xend)
    directory = xend.life.directory(1)
    xend.process("web").control("poweroff")
    await until(lambda: gone(xend, "web"))
    await xend.life.settle()
    assert not directory.exists()
    assert find(directory) == []
    assert (xend.life.roots.state / "console" / "web.log").read_bytes() == b"fake domain web\r\n"


async def test_who_reads_that_a_domain_has_ended_may_take_its_name(boot: Boot) -> None:
    xend = await boot()
    await create(xend)
    view = xend.domains.console("web").attach()
    xend.process("web").control("poweroff")
    async for _ in view:
        pass
    assert view.reason == "poweroff"
    assert gone(xend, "web")
    await create(xend)


async def test_a_managed_domain_is_halted_and_starts_again(boot: Boot) -> None:
    xend = await boot()
    await xend.domains.create(CreateRequest(config=describe(), managed=True))
    assert xend.domains.get("web").power_state is PowerState.HALTED
    await xend.domains.start("web", paused=False)
    with pytest.raises(Conflict, match="already running"):
        await xend.domains.start("web", paused=False)
    with pytest.raises(Conflict, match="not halted"):
        await xend.domains.delete("web")
    xend.process("web").control("poweroff")
    await until(lambda: xend.domains.get("web").domid is None)
    assert xend.domains.get("web").shutdown_reason is ShutdownReason.POWEROFF
    await xend.domains.start("web", paused=True)
    view = xend.domains.get("web")
    assert (view.domid, view.state) == (2, "--p---")
    await xend.domains.destroy("web")
    await xend.domains.delete("web")
    with pytest.raises(NotFound):
        xend.domains.get("web")


async def test_a_reboot_brings_it_back_with_its_uuid_under_a_new_id(boot: Boot) -> None:
    xend = await boot()
    await create(xend)
    uuid = xend.domains.get("web").uuid
    xend.process("web").control("reboot")
    await until(lambda: running_as(xend, "web", 2))
    view = xend.domains.get("web")
    assert (view.uuid, view.restart_count) == (uuid, 1)


async def test_a_restart_loop_is_ended_at_the_second_stop(boot: Boot) -> None:
    xend = await boot(minimum_restart_time=60)
    await create(xend)
    xend.process("web").control("crash")
    await until(lambda: running_as(xend, "web", 2))
    xend.process("web").control("crash")
    await until(lambda: gone(xend, "web"))
    assert "domain-restart-refused" in xend.kinds()


async def test_a_reboot_that_was_asked_for_is_no_loop(boot: Boot) -> None:
    xend = await boot(minimum_restart_time=60)
    await create(xend)
    for domid in (2, 3, 4):
        await xend.domains.shutdown("web", "reboot")
        await until(lambda domid=domid: running_as(xend, "web", domid))  # type: ignore[misc]


async def test_a_killed_monitor_is_a_crash(boot: Boot) -> None:
    xend = await boot()
    await create(xend, on_crash=Action.PRESERVE)
    os.kill(xend.process("web").pid, signal.SIGKILL)
    await until(lambda: xend.domains.get("web").state == "----c-")
    assert xend.domains.get("web").shutdown_reason is ShutdownReason.FAILED
    await xend.domains.destroy("web")
    assert gone(xend, "web")


async def test_preserve_keeps_the_process_until_it_is_destroyed(boot: Boot) -> None:
    xend = await boot()
    await create(xend, on_poweroff=Action.PRESERVE)
    pid = xend.process("web").pid
    xend.process("web").control("poweroff")
    await until(lambda: xend.domains.get("web").state == "---s--")
    assert find(xend.life.directory(1)) == [pid]
    await xend.domains.destroy("web")
    assert find(xend.life.directory(1)) == []


async def test_rename_restart_keeps_the_old_one_by_uuid(boot: Boot) -> None:
    xend = await boot()
    await create(xend, on_crash=Action.RENAME_RESTART)
    uuid = xend.domains.get("web").uuid
    xend.process("web").control("crash")
    await until(lambda: running_as(xend, "web", 2))
    assert xend.domains.get("web").uuid == uuid
    (kept,) = [domain for domain in xend.domains.list() if domain.domid == 1]
    assert kept.name == f"Domain-{kept.uuid}"
    assert kept.state == "----c-"
    assert len(list((xend.life.roots.state / "dump").iterdir())) == 1
    await xend.domains.destroy(kept.name)


@pytest.mark.parametrize("action", [Action.COREDUMP_DESTROY, Action.COREDUMP_RESTART])
async def test_coredump_actions_write_a_core_first(boot: Boot, action: Action) -> None:
    xend = await boot()
    await create(xend, on_crash=action)
    xend.process("web").control("crash")
    if action is Action.COREDUMP_DESTROY:
        await until(lambda: gone(xend, "web"))
    else:
        await until(lambda: running_as(xend, "web", 2))
    (core,) = (xend.life.roots.state / "dump").iterdir()
    assert core.read_bytes()[:4] == b"\x7fELF"


async def test_a_failed_start_leaves_nothing(boot: Boot) -> None:
    xend = await boot()
    with pytest.raises(EngineError, match="no such machine"):
        await create(xend, extra="fake.fail")
    assert gone(xend, "web")
    assert list(xend.life.roots.domains.iterdir()) == []
    assert await xend.life.store.records() == []
    await create(xend)
    assert xend.domains.get("web").domid == 2


async def test_a_paused_guest_cannot_hear_a_shutdown(boot: Boot) -> None:
    xend = await boot()
    await create(xend)
    await xend.domains.pause("web")
    with pytest.raises(Conflict, match="is paused"):
        await xend.domains.shutdown("web", "poweroff")
    await xend.domains.unpause("web")
    await xend.domains.shutdown("web", "poweroff")
    await until(lambda: gone(xend, "web"))


async def test_a_suspended_guest_stands_still_until_it_is_resumed_also_for_the_next_xend(boot: Boot) -> None:
    xend = await boot()
    await create(xend)
    with pytest.raises(Conflict, match="not suspended"):
        await xend.domains.resume("web")
    assert (await xend.domains.suspend("web")).power_state is PowerState.SUSPENDED
    with pytest.raises(Conflict, match="is suspended"):
        await xend.domains.shutdown("web", "poweroff")
    await xend.die()
    xend = await boot()
    assert (await xend.domains.suspend("web")).state == "---s--"
    assert (await xend.domains.resume("web")).power_state is PowerState.RUNNING
    await xend.domains.pause("web")
    with pytest.raises(Conflict, match="is paused"):
        await xend.domains.suspend("web")


async def test_a_renamed_domain_is_found_by_its_new_name_also_by_the_next_xend(boot: Boot) -> None:
    xend = await boot()
    await create(xend)
    await create(xend, "other")
    with pytest.raises(Conflict, match="already exists"):
        await xend.domains.rename("web", "other")
    await xend.domains.rename("web", "new")
    await xend.die()
    xend = await boot()
    assert xend.domains.get("new").domid == 1
    assert gone(xend, "web")


async def test_a_disk_in_use_is_refused_unless_both_say_shared(boot: Boot) -> None:
    xend = await boot()
    image = xend.life.roots.state / "a.img"
    image.write_bytes(bytes(4096))

    def disk(access: DiskAccess) -> tuple[Disk, ...]:
        return (Disk(vdev="hda", target=str(image), format=DiskFormat.RAW, access=access),)

    await create(xend, "one", disk=disk(DiskAccess.WRITE))
    for access in (DiskAccess.WRITE, DiskAccess.READ):
        with pytest.raises(Conflict, match="in use by domain 'one'"):
            await create(xend, "two", disk=disk(access))
    await create(xend, "two", disk=disk(DiskAccess.WRITE_SHARED))
    await xend.domains.destroy("one")
    await xend.domains.destroy("two")
    await create(xend, "one", disk=disk(DiskAccess.READ))
    await create(xend, "two", disk=disk(DiskAccess.READ))
    with pytest.raises(Conflict):
        await create(xend, "three", disk=disk(DiskAccess.WRITE))


# What the next xend finds


async def test_a_running_domain_is_adopted_with_its_console(boot: Boot) -> None:
    xend = await boot()
    await create(xend)
    pid = xend.process("web").pid
    await xend.die()
    xend = await boot()
    view = xend.domains.get("web")
    assert (view.domid, view.pid, view.power_state) == (1, pid, PowerState.RUNNING)
    assert xend.domains.console("web").tail(100) == b"fake domain web\r\n"
    xend.process("web").control("poweroff")
    await until(lambda: gone(xend, "web"))


async def test_a_paused_domain_is_still_paused(boot: Boot) -> None:
    xend = await boot()
    await create(xend)
    await xend.domains.pause("web")
    await xend.die()
    xend = await boot()
    assert xend.domains.get("web").state == "--p---"


@pytest.mark.parametrize(("word", "expected"), [("poweroff", None), ("reboot", 2), ("crash", 2), ("exit", 2)])
async def test_an_end_that_nobody_saw_is_dealt_with(boot: Boot, word: str, expected: int | None) -> None:
    xend = await boot()
    await create(xend)
    process, directory = xend.process("web"), xend.life.directory(1)
    await xend.die()
    before = (directory / "events").stat().st_size
    process.control(word)
    await until(lambda: (directory / "events").stat().st_size > before or not find(directory))
    xend = await boot()
    if expected is None:
        await until(lambda: gone(xend, "web"))
    else:
        await until(lambda: running_as(xend, "web", expected))


@pytest.mark.parametrize("intended", ["poweroff", "reboot", "destroy"])
async def test_an_order_that_was_written_down_is_carried_out(boot: Boot, intended: str) -> None:
    xend = await boot()
    await create(xend)
    record = xend.life.registry.find("web")
    record.intended = intended
    await xend.life.store.save(record)
    await xend.die()
    xend = await boot()
    if intended == "reboot":
        await until(lambda: running_as(xend, "web", 2))
    else:
        await until(lambda: gone(xend, "web"))


@pytest.mark.parametrize("origin", list(Origin))
async def test_a_half_made_domain_is_undone_or_made_again(boot: Boot, origin: Origin) -> None:
    xend = await boot()
    await xend.domains.create(CreateRequest(config=describe(), managed=origin is Origin.START))
    if origin is Origin.START:
        await xend.domains.start("web", paused=False)
    record = xend.life.registry.find("web")
    record.phase, record.origin = Phase.BUILDING, origin
    await xend.life.store.save(record)
    directory = xend.life.directory(1)
    await xend.die()
    xend = await boot()
    assert find(directory) == []
    if origin is Origin.CREATE:
        assert gone(xend, "web")
    elif origin is Origin.START:
        assert xend.domains.get("web").power_state is PowerState.HALTED
    else:
        await until(lambda: running_as(xend, "web", 2))
    assert not directory.exists()


async def test_after_a_reboot_of_the_host_managed_domains_are_halted_and_others_gone(boot: Boot) -> None:
    xend = await boot()
    await create(xend, "transient")
    await xend.domains.create(CreateRequest(config=describe("kept"), managed=True))
    await xend.domains.start("kept", paused=False)
    await xend.die()
    for number in (1, 2):
        xend.life.sweep(xend.life.directory(number))
    xend = await boot()
    assert gone(xend, "transient")
    assert xend.domains.get("kept").power_state is PowerState.HALTED
    await xend.domains.start("kept", paused=False)
    assert xend.domains.get("kept").domid == 3


async def test_a_folder_that_no_record_owns_is_swept_with_its_process(boot: Boot) -> None:
    xend = await boot()
    await create(xend)
    record = xend.life.registry.find("web")
    await xend.life.store.delete(record.uuid)
    await xend.die()
    xend = await boot()
    assert list(xend.life.roots.domains.iterdir()) == []
    assert find(xend.life.directory(1)) == []


async def test_the_watchdog_reports_a_guest_that_says_nothing(boot: Boot) -> None:
    xend = await boot()
    await create(xend, extra="fake.silent", boot_timeout=1)
    await create(xend, "talks", boot_timeout=1)
    await until(lambda: "domain-silent" in xend.kinds())
    assert xend.domains.get("web").silent
    assert not xend.domains.get("talks").silent


async def test_a_guest_that_does_not_hear_is_asked_again_and_then_called_unresponsive(boot: Boot) -> None:
    xend = await boot(shutdown_timeout=4)
    await create(xend, extra="fake.deaf")
    presses: list[str] = []
    process = xend.process("web")
    ask = process.request_shutdown

    async def counted(reason: str) -> None:
        presses.append(reason)
        await ask(reason)

    process.request_shutdown = counted  # type: ignore[method-assign]
    await xend.domains.shutdown("web", "poweroff")
    await until(lambda: "domain-unresponsive" in xend.kinds())
    assert presses == ["poweroff", "poweroff"]
    assert xend.domains.get("web").power_state is PowerState.RUNNING


async def test_a_restart_without_room_waits_for_it(boot: Boot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restarting, "_FIRST_TRY_S", 0.02)
    monkeypatch.setattr(restarting, "_LONGEST_WAIT_S", 0.02)
    xend = await boot()
    await create(xend, "web")
    await create(xend, "db")
    full = True

    def make_events(path: Path) -> None:
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        path.touch()

    monkeypatch.setattr(life, "_make_events", make_events)
    for name in ("web", "db"):
        xend.process(name).control("reboot")
    await until(lambda: all(xend.domains.get(name).paused_reason for name in ("web", "db")))
    found = xend.domains.get("web")
    assert (found.state, found.pid) == ("--p---", None)
    assert "no room: cannot make the folder" in (found.paused_reason or "")
    with pytest.raises(ResourceExhausted, match="'web' can't be restarted yet: its restart finds no room"):
        await xend.domains.start("web", paused=False)
    await xend.domains.destroy("db")
    assert [each.name for each in xend.domains.list()] == ["Domain-0", "web"]
    # Another xend knows of it, too.
    await xend.die()
    xend = await boot()
    await until(lambda: xend.domains.get("web").paused_reason is not None)
    full = False
    await until(lambda: xend.domains.get("web").state in ("-b----", "r-----"))
    assert xend.domains.get("web").paused_reason is None
    assert xend.kinds().count("domain-restart-waits") == 1


async def test_a_full_disk_of_the_hosts_says_why_a_guest_stands_still(boot: Boot) -> None:
    xend = await boot()
    await create(xend, "web")
    events = xend.process("web").directory / "events"
    with events.open("ab") as file:
        file.write(
            b'{"event": "BLOCK_IO_ERROR", "data": {"device": "", "node-name": "xvdb.0", "operation": "write", '
            b'"action": "stop", "nospace": true, "reason": "No space left on device"}}\n{"event": "STOP"}\n'
        )
    await until(lambda: xend.domains.get("web").state == "--p---")
    reason = "its disk xvdb can't be written to on the host: No space left on device"
    assert xend.domains.get("web").paused_reason == reason
    await xend.domains.unpause("web")
    assert xend.domains.get("web").paused_reason is None

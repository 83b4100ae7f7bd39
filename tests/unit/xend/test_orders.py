"""Orders for running domains, and what they leave in the description."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from pyxen.api import CreateRequest, DumpRequest, Trigger
from pyxen.config.model import Action
from pyxen.engine.fake import FakeDomain
from pyxen.errors import Conflict, EngineError, InvalidRequest, NotFound, Unsupported
from pyxen.xend.registry import Live
from tests.unit.xend.conftest import Xend, describe
from tests.unit.xend.test_life import create, gone, running_as, until

pytestmark = pytest.mark.anyio
Boot = Callable[..., Awaitable[Xend]]


async def test_vcpus_are_those_that_the_guest_uses(boot: Boot) -> None:
    xend = await boot()
    await create(xend, vcpus=1, maxvcpus=4)
    await xend.domains.set_vcpus("web", 3)
    await until(lambda: xend.domains.get("web").vcpus == 3)
    assert [(vcpu.online, vcpu.state) for vcpu in xend.domains.vcpus("web").vcpus][-1] == (False, "--p")
    assert len(xend.domains.vcpus("web").vcpus) == 4
    with pytest.raises(InvalidRequest, match="at most 4 VCPUs"):
        await xend.domains.set_vcpus("web", 5)
    await xend.die()
    xend = await boot()
    assert (xend.domains.get("web").vcpus, xend.domains.get("web").maxvcpus) == (3, 4)
    assert "domain-adopted" in xend.kinds() or xend.domains.get("web").domid == 1


class _Guest:
    """Stands for the agent: takes the orders to use so many VCPUs."""

    def __init__(self, why: str = "") -> None:
        self.orders: list[int] = []
        self._why = why

    async def use_vcpus(self, _live: Live, count: int) -> None:
        self.orders.append(count)
        if self._why:
            raise EngineError(self._why)


async def test_vcpus_that_must_stay_are_left_alone_by_the_guest(boot: Boot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeDomain, "vcpus_stay", True)
    xend = await boot()
    await create(xend, vcpus=1, maxvcpus=4)
    guest = _Guest()
    monkeypatch.setattr(xend.domains.agent, "use_vcpus", guest.use_vcpus)

    async def there(count: int) -> None:
        await until(lambda: sum(vcpu.online for vcpu in xend.process("web").statistics().vcpus) == count)

    await xend.domains.set_vcpus("web", 3)
    await there(3)
    assert guest.orders == [], "the guest takes up what comes by itself"
    await xend.domains.set_vcpus("web", 1)
    await there(3)
    assert guest.orders == [1]
    assert xend.domains.get("web").vcpus == 1
    assert [vcpu.online for vcpu in xend.domains.vcpus("web").vcpus] == [True, False, False, False]
    await xend.domains.set_vcpus("web", 4)
    await there(4)
    assert guest.orders == [1, 4]
    assert xend.domains.get("web").vcpus == 4
    failing = _Guest("its guest is busy")
    monkeypatch.setattr(xend.domains.agent, "use_vcpus", failing.use_vcpus)
    with pytest.raises(EngineError, match="its guest is busy"):
        await xend.domains.set_vcpus("web", 2)
    assert xend.domains.get("web").vcpus == 4
    monkeypatch.undo()
    monkeypatch.setattr(FakeDomain, "vcpus_stay", True)
    with pytest.raises(Unsupported, match="can't be asked to leave it alone: no way leads to an agent"):
        await xend.domains.set_vcpus("web", 2)


async def test_a_restart_keeps_what_was_set(boot: Boot) -> None:
    xend = await boot()
    await create(xend, vcpus=4, memory=256)
    await xend.domains.set_vcpus("web", 2)
    await xend.domains.set_memory("web", 128)
    xend.process("web").control("reboot")
    await until(lambda: running_as(xend, "web", 2))
    config = xend.domains.get("web").config
    assert config is not None
    assert (config.vcpus, config.maxvcpus, config.memory, config.maxmem) == (2, 4, 128, 256)
    await xend.domains.set_vcpus("web", 4)
    await xend.domains.set_memory("web", 256)


async def test_memory_is_what_the_guest_has(boot: Boot) -> None:
    xend = await boot()
    await create(xend, memory=128, maxmem=256)
    assert xend.domains.get("web").memory_mib == 256  # its balloon has not said a word yet
    await xend.domains.set_memory("web", 200)
    await until(lambda: xend.domains.get("web").memory_mib == 200)
    with pytest.raises(InvalidRequest, match="at most 256 MiB, not 257"):
        await xend.domains.set_memory("web", 257)
    await xend.die()
    xend = await boot()
    assert xend.domains.get("web").memory_mib == 200


async def test_the_maximum_lies_between_what_it_has_and_what_it_was_started_for(boot: Boot) -> None:
    xend = await boot()
    await create(xend, memory=128, maxmem=256)
    await xend.domains.set_maxmem("web", 200)
    assert xend.domains.get("web").maxmem_mib == 200
    with pytest.raises(InvalidRequest, match="at most 200 MiB"):
        await xend.domains.set_memory("web", 201)
    with pytest.raises(InvalidRequest, match="its maximum can't be 127") as caught:
        await xend.domains.set_maxmem("web", 127)
    assert caught.value.hint == "First: xm mem-set web 127"
    with pytest.raises(InvalidRequest, match="started for 256 MiB"):
        await xend.domains.set_maxmem("web", 257)
    await xend.domains.set_maxmem("web", 256)


async def test_a_managed_domain_that_does_not_run_gets_it_at_its_start(boot: Boot) -> None:
    xend = await boot()
    await xend.domains.create(CreateRequest(config=describe(vcpus=2, maxvcpus=3), managed=True))
    await xend.domains.set_vcpus("web", 4)
    await xend.domains.set_maxmem("web", 1024)
    await xend.domains.set_memory("web", 512)
    await xend.die()
    xend = await boot()
    view = xend.domains.get("web")
    assert (view.vcpus, view.maxvcpus, view.memory_mib, view.maxmem_mib) == (4, 4, 512, 1024)
    await xend.domains.start("web", paused=False)
    await xend.domains.destroy("web")


async def test_what_an_engine_refuses_is_not_written_down(boot: Boot) -> None:
    xend = await boot()
    await create(xend, vcpus=1, maxvcpus=2, on_poweroff=Action.PRESERVE)
    xend.process("web").control("poweroff")
    await until(lambda: xend.domains.get("web").state == "---s--")
    with pytest.raises(Conflict, match="its guest has stopped"):
        await xend.domains.set_vcpus("web", 2)
    config = xend.domains.get("web").config
    assert config is not None
    assert (config.vcpus, config.maxvcpus) == (1, 2)


async def test_sysrq_and_nmi_reach_the_guest(boot: Boot) -> None:
    xend = await boot()
    await create(xend, vcpus=2)
    await xend.domains.sysrq("web", "s")
    await xend.domains.trigger("web", Trigger.NMI, 1)
    log = xend.life.directory(1) / "console.log"
    await until(lambda: log.read_bytes() == b"fake domain web\r\nsysrq: s\r\nNMI 1\r\n")
    with pytest.raises(InvalidRequest, match="no VCPU 2"):
        await xend.domains.trigger("web", Trigger.NMI, 2)
    with pytest.raises(Unsupported, match="cannot trigger init"):
        await xend.domains.trigger("web", Trigger.INIT, None)
    with pytest.raises(Conflict, match="Domain-0"):
        await xend.domains.sysrq("0", "s")
    with pytest.raises(NotFound):
        await xend.domains.sysrq("nobody", "s")


async def test_a_crash_by_sysrq_is_a_crash(boot: Boot) -> None:
    xend = await boot()
    await create(xend, on_crash=Action.COREDUMP_RESTART)
    await xend.domains.sysrq("web", "c")
    await until(lambda: running_as(xend, "web", 2))
    assert len(list((xend.life.roots.state / "dump").iterdir())) == 1


async def test_resets_that_were_asked_for_are_no_loop(boot: Boot) -> None:
    xend = await boot(minimum_restart_time=60)
    await create(xend)
    for domid in (2, 3):
        await xend.domains.trigger("web", Trigger.RESET, None)
        await until(lambda domid=domid: running_as(xend, "web", domid))  # type: ignore[misc]


async def test_a_core_is_there_when_it_is_whole(boot: Boot, tmp_path: Path) -> None:
    xend = await boot()
    await create(xend)
    core = tmp_path / "web.core"
    core.write_bytes(b"an older one")
    done = await xend.domains.dump_core("web", DumpRequest(path=str(core)))
    assert done.path == str(core)
    assert core.read_bytes()[:4] == b"\x7fELF"
    assert list(tmp_path.iterdir()) == [core]
    with pytest.raises(InvalidRequest, match="cannot write /nowhere/core: No such file"):
        await xend.domains.dump_core("web", DumpRequest(path="/nowhere/core"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(InvalidRequest, match="Is a directory"):
        await xend.domains.dump_core("web", DumpRequest(path=str(tmp_path / "folder")))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "web.core"]


async def test_a_core_that_fails_leaves_nothing(boot: Boot, tmp_path: Path) -> None:
    xend = await boot()
    await create(xend, extra="fake.dumpless", kernel="/dev/null")
    with pytest.raises(Unsupported, match="dumps no core"):
        await xend.domains.dump_core("web", DumpRequest(path=str(tmp_path / "core")))
    assert list(tmp_path.iterdir()) == []


async def test_after_its_dump_a_domain_goes_on_or_is_ended_or_reset(boot: Boot) -> None:
    xend = await boot()
    await create(xend)
    with pytest.raises(InvalidRequest, match="both"):
        await xend.domains.dump_core("web", DumpRequest(crash=True, reset=True))
    await xend.domains.dump_core("web", DumpRequest())
    assert xend.domains.get("web").domid == 1
    await xend.domains.dump_core("web", DumpRequest(reset=True))
    await until(lambda: running_as(xend, "web", 2))
    done = await xend.domains.dump_core("web", DumpRequest(crash=True))
    assert await asyncio.to_thread(Path(done.path).is_file)
    assert gone(xend, "web")

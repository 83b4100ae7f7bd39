"""Pinning and sharing out CPUs, with the stand-in for guests."""

from __future__ import annotations

import os

import pytest

from pyxen.api import CreateRequest
from pyxen.config.model import DomainConfig
from pyxen.engine.cgroup import Shares
from pyxen.engine.topology import read_topology
from pyxen.errors import ConfigError, Conflict, InvalidRequest, Unsupported
from pyxen.scheduling_api import PinVcpusRequest, SetCreditRequest
from tests.unit.xend.conftest import Xend, describe
from tests.unit.xend.test_life import Boot, create, gone, running_as, until

pytestmark = pytest.mark.anyio
ONE = str(min(os.sched_getaffinity(0)))


def config(xend: Xend) -> DomainConfig:
    found = xend.domains.get("web").config
    assert found is not None
    return found


async def pin(xend: Xend, vcpu: int | None, cpus: str | None, soft: str | None = None) -> None:
    await xend.domains.scheduling.pin("web", PinVcpusRequest(vcpu=vcpu, cpus=cpus, cpus_soft=soft))


async def test_pins_are_kept_in_the_description(boot: Boot) -> None:
    xend = await boot()
    await create(xend, vcpus=1, maxvcpus=3)
    await pin(xend, 1, ONE)
    assert config(xend).cpus == ("all", ONE, "all")
    await pin(xend, None, ONE, "all")
    assert (config(xend).cpus, config(xend).cpus_soft) == ((ONE,), ("all",))
    await pin(xend, 2, "all")
    assert config(xend).cpus == (ONE, ONE, "all")
    await pin(xend, 2, None, ONE)
    assert (config(xend).cpus, config(xend).cpus_soft) == ((ONE, ONE, "all"), ("all", "all", ONE))
    shown = xend.domains.vcpus("web").vcpus
    one = None if read_topology().cpus.keys() == {int(ONE)} else [int(ONE)]
    assert [(vcpu.affinity, vcpu.soft_affinity) for vcpu in shown] == [(one, None), (one, None), (None, one)]
    xend.process("web").control("reboot")
    await until(lambda: running_as(xend, "web", 2))
    assert config(xend).cpus == (ONE, ONE, "all")
    await pin(xend, 0, "all")
    await pin(xend, 1, "all")
    assert config(xend).cpus == ("all",)
    assert "domain-vcpus-pinned" in xend.kinds()


async def test_what_can_not_be_pinned(boot: Boot) -> None:
    xend = await boot()
    await create(xend, vcpus=1, maxvcpus=2)
    with pytest.raises(InvalidRequest, match="has no VCPU 2"):
        await pin(xend, 2, ONE)
    with pytest.raises(InvalidRequest, match=r"Cannot pin vcpu: 0 to cpu: \[9000\] - this host has none"):
        await pin(xend, 0, "9000")
    with pytest.raises(ConfigError, match="no CPU or range"):
        await pin(xend, 0, "some")
    with pytest.raises(Conflict, match="Cannot pin VCPUs of privileged domain"):
        await xend.domains.scheduling.pin("0", PinVcpusRequest(cpus=ONE))
    assert config(xend).cpus == ()


async def test_a_domain_that_can_run_nowhere_is_not_started(boot: Boot) -> None:
    xend = await boot()
    with pytest.raises(InvalidRequest, match="this host has none of them"):
        await create(xend, cpus=("9000",))
    assert gone(xend, "web")


async def test_weights_and_caps_hold_at_once_and_later(boot: Boot) -> None:
    xend = await boot()
    await create(xend, vcpus=2, cpu_weight=512)
    assert xend.process("web").shares == Shares(512, 0)
    await xend.domains.scheduling.set_credit("web", SetCreditRequest(cap=150))
    assert xend.process("web").shares == Shares(512, 150)
    with pytest.raises(InvalidRequest, match="from 0 to 200 for specified number of vcpus"):
        await xend.domains.scheduling.set_credit("web", SetCreditRequest(cap=201))
    await xend.die()
    xend = await boot()
    await until(lambda: xend.process("web").shares == Shares(512, 150))
    await xend.domains.scheduling.set_credit("web", SetCreditRequest(weight=100))
    xend.process("web").control("reboot")
    await until(lambda: running_as(xend, "web", 2))
    assert xend.process("web").shares == Shares(100, 150)


async def test_disks_are_weighed_at_once_and_later(boot: Boot) -> None:
    xend = await boot()
    await create(xend, io_weight=200)
    assert xend.process("web").io_weight == 200
    await xend.domains.scheduling.set_io_weight("web", 300)
    assert (xend.process("web").io_weight, config(xend).io_weight) == (300, 300)
    await xend.die()
    xend = await boot()
    await until(lambda: xend.process("web").io_weight == 300)


async def test_a_host_without_controllers_refuses_orders_and_warns_of_descriptions(boot: Boot) -> None:
    xend = await boot()
    request = CreateRequest(config=describe(cpu_cap=50, kernel="/bin/true", extra="fake.groupless"))
    warned = await xend.domains.create(request)
    assert any("can't weigh or cap" in warning for warning in warned.warnings)
    with pytest.raises(Unsupported, match="can't weigh or cap"):
        await xend.domains.scheduling.set_credit("web", SetCreditRequest(weight=512))
    with pytest.raises(Unsupported, match="can't weigh the disks"):
        await xend.domains.scheduling.set_io_weight("web", 200)
    assert (config(xend).cpu_weight, config(xend).cpu_cap) == (256, 50)


async def test_a_managed_domain_that_does_not_run(boot: Boot) -> None:
    xend = await boot()
    await xend.domains.create(CreateRequest(config=describe(vcpus=2), managed=True))
    await pin(xend, 1, ONE)
    await xend.domains.scheduling.set_credit("web", SetCreditRequest(weight=1, cap=200))
    assert (config(xend).cpus, config(xend).cpu_weight, config(xend).cpu_cap) == (("all", ONE), 1, 200)
    await xend.domains.start("web", paused=False)
    assert xend.process("web").shares == Shares(1, 200)

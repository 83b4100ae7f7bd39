"""CPU pools on a made-up host of two nodes with four CPUs each."""

from __future__ import annotations

import pytest

from pyxen import api, scheduling_api
from pyxen.engine.placement import Placement
from pyxen.engine.topology import Cpu, Node, Topology
from pyxen.errors import Conflict, InvalidRequest, NotFound, PyxenError
from tests.unit.xend.conftest import Xend, describe
from tests.unit.xend.test_life import Boot, create, gone, running_as, until

pytestmark = pytest.mark.anyio
HOST = Topology(
    {cpu: Cpu(socket=cpu // 4, core=cpu, node=cpu // 4) for cpu in range(8)},
    {0: Node(frozenset(range(4))), 1: Node(frozenset(range(4, 8)))},
)


@pytest.fixture(autouse=True)
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("cpupools", "life", "scheduling"):
        monkeypatch.setattr(f"pyxen.xend.{module}.read_topology", lambda: HOST)


def pools(xend: Xend) -> dict[str, list[int]]:
    listed = xend.domains.cpupools.list()
    return {pool.name: pool.cpus for pool in listed.pools} | {"": listed.free}


async def make(xend: Xend, name: str, cpus: str) -> None:
    """With CPUs of Pool-0's."""
    await xend.domains.cpupools.remove_cpus("Pool-0", scheduling_api.CpuPoolCpusRequest(cpus))
    await xend.domains.cpupools.create(scheduling_api.CreateCpuPoolRequest(name, cpus))


def others(xend: Xend, name: str = "web") -> set[int] | None:
    found = xend.process(name).placement.others
    return None if found is None else set(found)


async def test_at_first_all_cpus_are_in_pool_0_and_nobody_is_bound(boot: Boot) -> None:
    xend = await boot()
    await create(xend)
    assert pools(xend) == {"Pool-0": list(range(8)), "": []}
    assert xend.process("web").placement == Placement((None,), None)


async def test_a_cpu_belongs_to_one_pool(boot: Boot) -> None:
    xend = await boot()
    calls = xend.domains.cpupools
    with pytest.raises(Conflict, match="No CPU is free"):
        await calls.create(scheduling_api.CreateCpuPoolRequest("fast"))
    with pytest.raises(Conflict, match="CPU 2-3 belongs to Pool-0") as caught:
        await calls.create(scheduling_api.CreateCpuPoolRequest("fast", "2-3"))
    assert caught.value.hint == "First: xm cpupool-cpu-remove Pool-0 2-3"
    await make(xend, "fast", "2-3")
    assert pools(xend) == {"Pool-0": [0, 1, 4, 5, 6, 7], "fast": [2, 3], "": []}
    with pytest.raises(Conflict, match="already exists"):
        await calls.create(scheduling_api.CreateCpuPoolRequest("fast", "7"))
    with pytest.raises(Conflict, match="CPU 7 belongs to Pool-0"):
        await calls.add_cpus("fast", scheduling_api.CpuPoolCpusRequest("7"))
    with pytest.raises(Conflict, match="CPU 7 is not in pool 'fast'"):
        await calls.remove_cpus("fast", scheduling_api.CpuPoolCpusRequest("7"))
    with pytest.raises(InvalidRequest, match="none of them"):
        await calls.add_cpus("fast", scheduling_api.CpuPoolCpusRequest("99"))
    await calls.remove_cpus("Pool-0", scheduling_api.CpuPoolCpusRequest("6-7"))
    await calls.add_cpus("fast", scheduling_api.CpuPoolCpusRequest("6"))
    await calls.create(scheduling_api.CreateCpuPoolRequest("one"))
    assert pools(xend) == {"Pool-0": [0, 1, 4, 5], "fast": [2, 3, 6], "one": [7], "": []}
    await calls.destroy("fast")
    assert pools(xend) == {"Pool-0": [0, 1, 4, 5], "one": [7], "": [2, 3, 6]}
    await calls.add_cpus("Pool-0", scheduling_api.CpuPoolCpusRequest("2"))
    with pytest.raises(Conflict, match="Pool-0 can't be destroyed"):
        await calls.destroy("Pool-0")
    with pytest.raises(NotFound, match="Pool 'fast' does not exist"):
        await calls.destroy("fast")
    with pytest.raises(Conflict, match="must keep a CPU"):
        await calls.remove_cpus("Pool-0", scheduling_api.CpuPoolCpusRequest("0-5"))
    await xend.die()
    assert pools(await boot()) == {"Pool-0": [0, 1, 2, 4, 5], "one": [7], "": [3, 6]}


async def test_domains_run_where_their_pool_is(boot: Boot) -> None:
    xend = await boot()
    calls = xend.domains.cpupools
    await make(xend, "fast", "4-5")
    await create(xend, pool="fast", vcpus=2, cpus=("0", "5"))
    assert xend.process("web").placement.vcpus == (frozenset({4, 5}), frozenset({5}))
    await create(xend, "other")
    assert others(xend, "other") == {0, 1, 2, 3, 6, 7}
    listed = {pool.name: pool.domains for pool in calls.list().pools}
    assert listed == {"Pool-0": ["other"], "fast": ["web"]}
    with pytest.raises(Conflict, match="is used by web") as caught:
        await calls.destroy("fast")
    assert caught.value.hint == "First: xm cpupool-migrate web Pool-0"
    with pytest.raises(Conflict, match="must keep a CPU"):
        await calls.remove_cpus("fast", scheduling_api.CpuPoolCpusRequest("4-5"))
    await calls.remove_cpus("fast", scheduling_api.CpuPoolCpusRequest("5"))
    assert xend.process("web").placement.vcpus == (frozenset({4}),) * 2
    moved = await calls.migrate("web", scheduling_api.SetPoolRequest("Pool-0"))
    assert moved.config is not None and moved.config.pool == "Pool-0"
    assert xend.process("web").placement.vcpus[0] == frozenset({0})
    assert moved.warnings == ["VCPU 1 of 'web' is pinned to CPUs that Pool-0 lacks, and runs on all of the pool's"]
    moved = await calls.migrate("web", scheduling_api.SetPoolRequest("fast"))
    assert moved.warnings == ["VCPU 0-1 of 'web' is pinned to CPUs that fast lacks, and runs on all of the pool's"]
    await calls.migrate("web", scheduling_api.SetPoolRequest("Pool-0"))
    xend.process("web").control("reboot")
    await until(lambda: running_as(xend, "web", 3))
    assert others(xend) == {0, 1, 2, 3, 6, 7}


async def test_a_domain_of_a_pool_is_adopted_into_it(boot: Boot) -> None:
    xend = await boot()
    await make(xend, "fast", "4-5")
    await create(xend, pool="fast")
    await xend.die()
    xend = await boot()
    await until(lambda: others(xend) == {4, 5})


async def test_pools_that_are_not_there(boot: Boot) -> None:
    xend = await boot()
    with pytest.raises(NotFound, match="Pool 'fast' does not exist"):
        await create(xend, pool="fast")
    assert gone(xend, "web")
    await create(xend)
    with pytest.raises(NotFound, match="Pool 'fast' does not exist"):
        await xend.domains.cpupools.migrate("web", scheduling_api.SetPoolRequest("fast"))
    await make(xend, "empty", "7")
    await xend.domains.cpupools.remove_cpus("empty", scheduling_api.CpuPoolCpusRequest("7"))
    with pytest.raises(Conflict, match="Pool 'empty' has no CPU") as caught:
        await xend.domains.cpupools.migrate("web", scheduling_api.SetPoolRequest("empty"))
    assert caught.value.hint == "Add one: xm cpupool-cpu-add empty 7"
    with pytest.raises(PyxenError, match="privileged domain"):
        await xend.domains.cpupools.migrate("Domain-0", scheduling_api.SetPoolRequest("empty"))


async def test_a_managed_domain_keeps_its_pool_from_being_destroyed(boot: Boot) -> None:
    xend = await boot()
    await make(xend, "fast", "7")
    await xend.domains.create(api.CreateRequest(config=describe(pool="fast"), managed=True))
    with pytest.raises(Conflict, match="is used by web"):
        await xend.domains.cpupools.destroy("fast")


async def test_a_pool_for_each_node(boot: Boot, monkeypatch: pytest.MonkeyPatch) -> None:
    xend = await boot()
    split = await xend.domains.cpupools.split_by_nodes()
    assert {pool.name: pool.cpus for pool in split.pools} == {"Pool-0": [0, 1, 2, 3], "Pool-node1": [4, 5, 6, 7]}
    with pytest.raises(Conflict, match="divided up already"):
        await xend.domains.cpupools.split_by_nodes()
    one = Topology(HOST.cpus, {0: Node(frozenset(range(8)))})
    monkeypatch.setattr("pyxen.xend.cpupools.read_topology", lambda: one)
    with pytest.raises(Conflict, match="one NUMA node"):
        await xend.domains.cpupools.split_by_nodes()

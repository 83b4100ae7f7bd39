"""Orders about CPU pools: the host's CPUs divided up, and each domain in one part."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from pyxen import api, scheduling_api
from pyxen.config.model import POOL_0
from pyxen.engine.placement import meant
from pyxen.engine.topology import Topology, read_topology
from pyxen.errors import Conflict, PyxenError
from pyxen.xend.life import Life
from pyxen.xend.store import Record


class CpuPools:
    """Carries out ``xm cpupool-…``. What a pool's CPUs are is told to the kernel for each domain in it."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self._table = life.pools
        self._lock = asyncio.Lock()

    def list(self) -> scheduling_api.CpuPoolList:
        host = read_topology()
        pools = [self._shown(name, host) for name in self._table.names]
        return scheduling_api.CpuPoolList(pools, sorted(self._table.free(host)))

    async def create(self, request: scheduling_api.CreateCpuPoolRequest) -> scheduling_api.CpuPool:
        async with self._lock:
            host = await asyncio.to_thread(read_topology)
            free = self._table.free(host)
            if request.cpus is not None:
                cpus = meant(request.cpus, host)
            elif free:
                cpus = frozenset({min(free)})
            else:
                raise Conflict(
                    "No CPU is free for a pool",
                    hint=f"Take one out of another: xm cpupool-cpu-remove {POOL_0} {max(host.cpus)}",
                )
            await self._table.create(request.name, cpus, host)
            self._life.events.publish("cpupool-created", name=request.name)
            return self._shown(request.name, host)

    async def destroy(self, name: str) -> None:
        async with self._lock:
            host = await asyncio.to_thread(read_topology)
            self._table.cpus(name, host)
            if users := sorted(record.name for record in self._users(name)):
                raise Conflict(
                    f"Pool '{name}' is used by {', '.join(users)}",
                    hint=f"First: xm cpupool-migrate {users[0]} {POOL_0}",
                )
            await self._table.destroy(name, host)
            self._life.events.publish("cpupool-destroyed", name=name)

    async def add_cpus(self, name: str, request: scheduling_api.CpuPoolCpusRequest) -> scheduling_api.CpuPool:
        async with self._lock:
            host = await asyncio.to_thread(read_topology)
            await self._table.add(name, meant(request.cpus, host), host)
            await self._tell_domains(name)
            return self._shown(name, host)

    async def remove_cpus(self, name: str, request: scheduling_api.CpuPoolCpusRequest) -> scheduling_api.CpuPool:
        async with self._lock:
            host = await asyncio.to_thread(read_topology)
            cpus = meant(request.cpus, host)
            users = sorted(record.name for record in self._users(name))
            if cpus >= self._table.cpus(name, host) and (users or name == POOL_0):
                raise Conflict(
                    f"Pool '{name}' must keep a CPU", hint=f"It has the domains: {', '.join(users)}" if users else None
                )
            await self._table.remove(name, cpus, host)
            await self._tell_domains(name)
            return self._shown(name, host)

    async def split_by_nodes(self) -> scheduling_api.CpuPoolList:
        """A pool for each NUMA node; Pool-0 keeps the first."""
        async with self._lock:
            host = await asyncio.to_thread(read_topology)
            _, *others = (node for node, has in host.nodes.items() if has.cpus)
            if not others:
                raise Conflict("This host has one NUMA node with CPUs: there is nothing to split")
            if self._table.names != [POOL_0] or self._table.free(host):
                raise Conflict("The host's CPUs are divided up already", hint="See: xm cpupool-list")
            for node in others:
                cpus = host.nodes[node].cpus
                await self._table.remove(POOL_0, cpus, host)
                await self._table.create(f"Pool-node{node}", cpus, host)
            await self._tell_domains(POOL_0)
        return self.list()

    async def migrate(self, ref: str, request: scheduling_api.SetPoolRequest) -> api.Domain:
        """Returns the domain as it is now; its warnings are this order's."""
        records = self._life.records
        record = records.changeable(ref, "move")
        warnings: list[str] = []
        async with self._lock, self._life.registry.lock(record.uuid):
            records.present(record)
            self._table.bounds(request.pool, await asyncio.to_thread(read_topology))

            async def order(process: object) -> None:
                warnings.extend(await self._life.place(record, self._life.registry.live[record.uuid].process))

            await records.reconfigure(record, order, pool=request.pool)
            self._life.tell("domain-pool-set", record, pool=request.pool)
        view = self._life.registry.view(record)
        view.warnings = warnings
        return view

    async def _tell_domains(self, name: str) -> None:
        """Have the domains of a pool run where it now is; one that can't stops none of the others."""
        self._life.events.publish("cpupool-changed", name=name)
        for record in list(self._users(name)):
            async with self._life.registry.lock(record.uuid):
                live = self._life.registry.live.get(record.uuid)
                if live is not None and live.process.stopped is None:
                    try:
                        await self._life.place(record, live.process)
                    except PyxenError as error:
                        self._life.log.error("domain not placed", name=record.name, error=str(error))

    def _users(self, name: str) -> Iterator[Record]:
        return (record for record in self._life.registry.records.values() if record.config.pool == name)

    def _shown(self, name: str, host: Topology) -> scheduling_api.CpuPool:
        live = self._life.registry.live
        running = sorted(record.name for record in self._users(name) if record.uuid in live)
        return scheduling_api.CpuPool(name, sorted(self._table.cpus(name, host)), running)

"""The CPU pools: which of the host's CPUs belongs to which, kept in xend's database.

Each CPU is in one pool or free. Pool-0 has all that no other has and nobody took out; it can't be destroyed.
"""

from __future__ import annotations

import msgspec

from pyxen.config.cpulist import ranges
from pyxen.config.model import POOL_0
from pyxen.engine.topology import Topology
from pyxen.errors import Conflict, NotFound
from pyxen.xend.store import Store

_KEY = "cpupools"


class _Kept(msgspec.Struct, frozen=True):
    """What is written down."""

    pools: dict[str, list[int]] = {}
    """All but Pool-0."""
    free: list[int] = []


class PoolTable:
    """Who has which CPU. Changes are written before they count; one at a time, please."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._kept = _Kept()
        self._divided = False
        """Has anybody ever made or changed a pool? Until then nothing is told to the kernel."""

    async def load(self) -> None:
        """Read what an earlier xend has kept."""
        if (text := await self._store.meta(_KEY)) is not None:
            self._kept, self._divided = msgspec.json.decode(text, type=_Kept), True

    @property
    def names(self) -> list[str]:
        return [POOL_0, *self._kept.pools]

    def cpus(self, name: str, host: Topology) -> frozenset[int]:
        """The CPUs of a pool that are online. Raises NotFound."""
        if name == POOL_0:
            taken = {cpu for cpus in self._kept.pools.values() for cpu in cpus}
            return frozenset(host.cpus.keys() - taken - set(self._kept.free))
        if name not in self._kept.pools:
            raise NotFound(f"Pool '{name}' does not exist", hint="See what there is: xm cpupool-list")
        return frozenset(host.cpus.keys() & set(self._kept.pools[name]))

    def free(self, host: Topology) -> frozenset[int]:
        """CPUs that are in no pool."""
        return frozenset(host.cpus.keys() & set(self._kept.free))

    def bounds(self, name: str, host: Topology) -> frozenset[int] | None:
        """Where domains of a pool may run; None: nobody has ever divided this host up. Raises NotFound, Conflict."""
        if name == POOL_0 and not self._divided:
            return None
        if not (cpus := self.cpus(name, host)):
            raise Conflict(
                f"Pool '{name}' has no CPU",
                hint=f"Add one: xm cpupool-cpu-add {name} {ranges(self.free(host)) or 'CPU'}",
            )
        return cpus

    async def create(self, name: str, cpus: frozenset[int], host: Topology) -> None:
        if name in self.names:
            raise Conflict(f"Pool '{name}' already exists")
        self._check_free(cpus, host)
        await self._keep({**self._kept.pools, name: sorted(cpus)}, set(self._kept.free) - cpus)

    async def destroy(self, name: str, host: Topology) -> None:
        """Its CPUs are free then."""
        cpus = self.cpus(name, host)
        if name == POOL_0:
            raise Conflict(f"{POOL_0} can't be destroyed")
        pools = {other: own for other, own in self._kept.pools.items() if other != name}
        await self._keep(pools, {*self._kept.free, *self._kept.pools[name], *cpus})

    async def add(self, name: str, cpus: frozenset[int], host: Topology) -> None:
        own = self.cpus(name, host)
        self._check_free(cpus - own, host)
        pools = dict(self._kept.pools)
        if name != POOL_0:
            pools[name] = sorted({*pools[name], *cpus})
        await self._keep(pools, set(self._kept.free) - cpus)

    async def remove(self, name: str, cpus: frozenset[int], host: Topology) -> None:
        own = self.cpus(name, host)
        if missing := cpus - own:
            raise Conflict(f"CPU {ranges(missing)} is not in pool '{name}'", hint=f"It has: {ranges(own) or 'none'}")
        pools = dict(self._kept.pools)
        if name != POOL_0:
            pools[name] = sorted(set(pools[name]) - cpus)
        await self._keep(pools, {*self._kept.free, *cpus})

    def _check_free(self, cpus: frozenset[int], host: Topology) -> None:
        for name in self.names:
            if taken := cpus & self.cpus(name, host):
                raise Conflict(
                    f"CPU {ranges(taken)} belongs to {name}",
                    hint=f"First: xm cpupool-cpu-remove {name} {ranges(taken)}",
                )

    async def _keep(self, pools: dict[str, list[int]], free: set[int]) -> None:
        kept = _Kept(pools, sorted(free))
        await self._store.set_meta(_KEY, msgspec.json.encode(kept).decode())
        self._kept, self._divided = kept, True

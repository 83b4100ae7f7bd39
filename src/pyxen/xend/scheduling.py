"""Which of the host's CPUs domains run on, and how much of them they get."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec

from pyxen import api, scheduling_api
from pyxen.config.cpulist import ALL, expand
from pyxen.config.model import DomainConfig
from pyxen.engine.cgroup import Shares
from pyxen.engine.contract import RunningDomain
from pyxen.engine.placement import meant
from pyxen.engine.topology import Topology, read_topology
from pyxen.errors import InvalidRequest
from pyxen.xend.life import Life
from pyxen.xend.store import Record


class Scheduling:
    """Carries out ``xm vcpu-pin`` and ``xm sched-credit``, and shows what came of them."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self._records = life.records

    def with_affinities(self, record: Record, vcpus: Sequence[api.Vcpu]) -> list[api.Vcpu]:
        """VCPUs with where they may run: by the kernel's word, or where there is no thread yet the description's."""
        live = self._life.registry.live.get(record.uuid)
        threads = live.process.affinities() if live else {}
        config = record.config
        if not (threads or config.cpus or config.cpus_soft):
            return list(vcpus)
        host = read_topology()

        def show(vcpu: api.Vcpu) -> api.Vcpu:
            hard = threads.get(vcpu.number)
            if hard is None:
                hard = _named(config.cpus, vcpu.number, host)
            soft = _named(config.cpus_soft, vcpu.number, host)
            return msgspec.structs.replace(vcpu, affinity=_listed(hard, host), soft_affinity=_listed(soft, host))

        return [show(vcpu) for vcpu in vcpus]

    async def pin(self, ref: str, request: scheduling_api.PinVcpusRequest) -> api.Domain:
        """Returns the domain as it is now; its warnings are this order's."""
        record = self._records.changeable(ref, "pin VCPUs of")
        async with self._life.registry.lock(record.uuid):
            live, config = self._records.present(record), record.config
            count = live.spec.most_vcpus if live else _most_vcpus(config)
            if request.vcpu is not None and request.vcpu >= count:
                raise InvalidRequest(
                    f"Domain '{record.name}' has no VCPU {request.vcpu}", hint=f"It can have 0 to {count - 1}."
                )
            host = await asyncio.to_thread(read_topology)
            changes: dict[str, object] = {}
            for key, text in (("cpus", request.cpus), ("cpus_soft", request.cpus_soft)):
                if text is not None:
                    meant(text, host, request.vcpu)
                    changes[key] = _pinned(getattr(config, key), request.vcpu, text, count)
            warnings: list[str] = []

            async def order(process: RunningDomain) -> None:
                if request.cpus is not None:
                    warnings.extend(await self._life.place(record, process))

            await self._records.reconfigure(record, order, **changes)
            self._life.tell("domain-vcpus-pinned", record, vcpu=request.vcpu, cpus=request.cpus, soft=request.cpus_soft)
        return self._view(record, warnings)

    async def set_credit(self, ref: str, request: scheduling_api.SetCreditRequest) -> api.Domain:
        record = self._records.changeable(ref, "change the scheduling of")
        async with self._life.registry.lock(record.uuid):
            live, config = self._records.present(record), record.config
            weight = config.cpu_weight if request.weight is None else request.weight
            cap = config.cpu_cap if request.cap is None else request.cap
            most = 100 * (live.spec.most_vcpus if live else _most_vcpus(config))
            if cap > most:
                raise InvalidRequest(
                    f"Cpu cap out of range, valid range is from 0 to {most} for specified number of vcpus"
                )

            async def order(process: RunningDomain) -> None:
                process.share(Shares(weight, cap))

            await self._records.reconfigure(record, order, cpu_weight=weight, cpu_cap=cap)
            self._life.tell("domain-credit-set", record, weight=weight, cap=cap)
        return self._view(record, [])

    async def set_io_weight(self, ref: str, weight: int) -> api.Domain:
        record = self._records.changeable(ref, "change the scheduling of")
        async with self._life.registry.lock(record.uuid):
            self._records.present(record)

            async def order(process: RunningDomain) -> None:
                process.weigh_io(weight)

            await self._records.reconfigure(record, order, io_weight=weight)
            self._life.tell("domain-io-weight-set", record, weight=weight)
        return self._view(record, [])

    def _view(self, record: Record, warnings: list[str]) -> api.Domain:
        view = self._life.registry.view(record)
        view.warnings = warnings
        return view


def _most_vcpus(config: DomainConfig) -> int:
    return max(config.vcpus, config.maxvcpus or 0)


def _pinned(lists: tuple[str, ...], vcpu: int | None, text: str, count: int) -> tuple[str, ...]:
    """The lists for ``count`` VCPUs with ``vcpu``'s (None: all VCPUs') changed."""
    if vcpu is None:
        return (text,)
    each = list(lists * count if len(lists) == 1 else [*lists, *[ALL] * count][:count])
    each[vcpu] = text
    return tuple(each) if len(set(each)) > 1 else (text,)


def _named(lists: tuple[str, ...], vcpu: int, host: Topology) -> frozenset[int] | None:
    if not lists or 1 < len(lists) <= vcpu:
        return None
    return expand(lists[0 if len(lists) == 1 else vcpu], host.cpus, host.cpus_of_nodes)


def _listed(cpus: frozenset[int] | None, host: Topology) -> list[int] | None:
    return None if cpus is None or cpus >= host.cpus.keys() else sorted(cpus)

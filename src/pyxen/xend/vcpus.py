"""The VCPUs of domains: how many a guest uses, and which they are.

A monitor that can't take a VCPU out of a running machine (QEMU without KVM) leaves it in: then the guest lets it
alone, which its agent sees to, and takes it up again when it is wanted. What a domain's description says is how many
are used, of those that are there.
"""

from __future__ import annotations

import asyncio

from pyxen import api
from pyxen.engine.contract import RunningDomain
from pyxen.errors import EngineError, InvalidRequest, Unsupported
from pyxen.xend import host
from pyxen.xend.agent import Agents
from pyxen.xend.life import Life
from pyxen.xend.records import DOMAIN_0
from pyxen.xend.registry import Live, halted_vcpus, used_vcpus
from pyxen.xend.scheduling import Scheduling

_OBEY_S = 100.0
"""As a rule it takes a second; a guest whose VCPUs all share a busy thread needs far longer for 31 of them."""


class Vcpus:
    """Tells them, and sets how many there are."""

    def __init__(self, life: Life, agents: Agents, scheduling: Scheduling) -> None:
        self._life = life
        self._agents = agents
        self._scheduling = scheduling

    def listed(self, ref: str) -> api.VcpuList:
        """A domain's, those too that it could have. Raises NotFound."""
        if ref in DOMAIN_0:
            return api.VcpuList(domid=0, name="Domain-0", vcpus=host.dom0_vcpus())
        record = self._life.registry.find(ref)
        live = self._life.registry.live.get(record.uuid)
        vcpus = used_vcpus(record, live.process, live.process.statistics()) if live else halted_vcpus(record)
        vcpus = self._scheduling.with_affinities(record, vcpus)
        return api.VcpuList(domid=record.domid, name=record.name, vcpus=vcpus)

    async def set(self, ref: str, count: int) -> api.Domain:
        """Have a guest use VCPUs 0 to ``count`` - 1, now and after its next start. Raises PyxenError."""
        record = self._life.records.changeable(ref, "change")
        async with self._life.registry.lock(record.uuid):
            live, config = self._life.records.present(record), record.config
            most = live.spec.most_vcpus if live else max(count, config.maxvcpus or 0)
            if count > most:
                raise InvalidRequest(
                    f"Domain '{record.name}' can have at most {most} VCPUs while it runs, not {count}",
                    hint="maxvcpus in its description says how many it is started for.",
                )

            async def order(process: RunningDomain) -> None:
                assert live is not None
                there = sum(vcpu.online for vcpu in process.statistics().vcpus)
                if not process.vcpus_stay or count > there:
                    await process.set_vcpus(count)
                if process.vcpus_stay and min(config.vcpus, count) < there:
                    await self._have_used(live, count)

            maxvcpus = None if config.maxvcpus is None and most == count else most
            await self._life.records.reconfigure(record, order, vcpus=count, maxvcpus=maxvcpus)
            self._life.tell("domain-vcpus-set", record, count=count)
        return self._life.registry.view(record)

    async def _have_used(self, live: Live, count: int) -> None:
        """Have the guest itself use so many of the VCPUs that it has."""
        name = live.spec.config.name
        try:
            async with asyncio.timeout(_OBEY_S):
                await self._agents.use_vcpus(live, count)
        except Unsupported as error:
            raise Unsupported(
                f"QEMU can't take a VCPU away from '{name}' without KVM, and its guest can't be asked to leave it "
                f"alone: {error.message}",
                hint="By hand, in the guest: echo 0 > /sys/devices/system/cpu/cpu1/online",
            ) from error
        except TimeoutError:
            raise EngineError(f"the guest of '{name}' has not changed its VCPUs within {_OBEY_S:g} s") from None

"""The domains that xend knows, in memory: rows of the store, and what is held of those that run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import msgspec

from pyxen import api
from pyxen.api import AgentKind, PowerState, ShutdownReason
from pyxen.engine.contract import DomainSpec, RunningDomain, Statistics
from pyxen.errors import NotFound
from pyxen.xend.console import Console
from pyxen.xend.store import Phase, Record


@dataclass(slots=True)
class Live:
    """What xend holds of a domain that has a process."""

    spec: DomainSpec
    process: RunningDomain
    console: Console
    accelerator: str = ""
    silent: bool = False
    untold: bool = False
    """Its guest is to be told that it goes on elsewhere or later, as soon as it does."""
    agent: AgentKind | None = None
    """Its guest's, where only speaking to it shows that it is there."""
    timers: list[asyncio.TimerHandle] = field(default_factory=list)
    asking: list[asyncio.Task[None]] = field(default_factory=list)
    leaving: dict[str, asyncio.Future[None]] = field(default_factory=dict)
    """Devices that the guest has been asked to let go of, done when it has."""

    @property
    def agent_kind(self) -> AgentKind | None:
        """The agent that its guest has, as far as is known."""
        return next(iter(self.process.agents), self.agent)

    def cancel(self) -> None:
        """Let go of what would have been done later."""
        for timer in self.timers:
            timer.cancel()
        for task in self.asking:
            task.cancel()
        for gone in self.leaving.values():
            gone.cancel()


class Registry:
    """Records by UUID, with Xen's way of looking one up. One lock for each domain serialises what is done to it."""

    def __init__(self) -> None:
        self.records: dict[str, Record] = {}
        self.live: dict[str, Live] = {}
        self.waiting: dict[str, str] = {}
        """Of domains that can't be restarted yet, why."""
        self._locks: dict[str, asyncio.Lock] = {}

    def lock(self, uuid: str) -> asyncio.Lock:
        return self._locks.setdefault(uuid, asyncio.Lock())

    def forget(self, uuid: str) -> None:
        self.records.pop(uuid, None)
        self.waiting.pop(uuid, None)
        self._locks.pop(uuid, None)

    def named(self, name: str) -> Record | None:
        return next((record for record in self.records.values() if record.name == name), None)

    def find(self, ref: str) -> Record:
        """By name, then by id, then by UUID: a name wins over an id, as in xend. Raises NotFound."""
        found = self.named(ref)
        if found is None and ref.isascii() and ref.isdigit():
            found = next((each for each in self.records.values() if each.domid == int(ref)), None)
        found = found or self.records.get(ref.lower())
        if found is None:
            raise NotFound(f"Domain '{ref}' does not exist", hint="See what there is: xm list")
        return found

    def running_specs(self) -> Iterator[DomainSpec]:
        """The specs of all that hold disks, ports and addresses now."""
        return (live.spec for live in self.live.values())

    def view(self, record: Record) -> api.Domain:
        """The domain as the API shows it."""
        live = self.live.get(record.uuid)
        config = record.config
        domain = api.Domain(
            domid=record.domid,
            name=record.name,
            uuid=record.uuid,
            power_state=PowerState.HALTED,
            state="",
            managed=record.managed,
            memory_mib=config.memory,
            maxmem_mib=config.maxmem or config.memory,
            vcpus=config.vcpus,
            maxvcpus=config.maxvcpus or config.vcpus,
            cpu_time_s=0.0,
            created_at=record.created_at,
            started_at=record.started_at,
            engine=record.engine,
            restart_count=record.restart_count,
            shutdown_reason=record.last_reason,
            config=config,
        )
        if record.phase is Phase.BUILDING:
            domain.power_state, domain.state = PowerState.PAUSED, "--p---"
            domain.paused_reason = self.waiting.get(record.uuid)
        elif record.phase is Phase.PRESERVED:
            crashed = record.last_reason in (ShutdownReason.CRASH, ShutdownReason.FAILED, ShutdownReason.WATCHDOG)
            domain.power_state = PowerState.CRASHED if crashed else PowerState.SHUTDOWN
            domain.state = "----c-" if crashed else "---s--"
        if live is not None:
            self._add_live(domain, record, live)
        return domain

    def _add_live(self, domain: api.Domain, record: Record, live: Live) -> None:
        statistics = live.process.statistics()
        domain.vcpus = sum(vcpu.online for vcpu in used_vcpus(record, live.process, statistics))
        # Until its balloon has said otherwise, the guest has all that it may have.
        domain.memory_mib = statistics.memory_mib or live.spec.most_memory_mib
        domain.cpu_time_s = statistics.cpu_time_s
        domain.pid = live.process.pid
        domain.accelerator = live.accelerator or None
        domain.silent = live.silent
        domain.paused_reason = live.process.stalled
        domain.vnc = live.process.info.vnc
        domain.gdb = live.process.info.gdb
        domain.forwards = list(live.process.info.forwards)
        domain.warnings = list(live.process.info.warnings)
        domain.agent = live.agent_kind
        domain.jail = list(live.process.info.jail)
        if record.phase is Phase.RUNNING:
            domain.power_state, domain.state = _running_state(record, live, statistics)


def _running_state(record: Record, live: Live, statistics: Statistics) -> tuple[PowerState, str]:
    if record.intended == "destroy":
        return PowerState.SHUTDOWN, "-----d"
    if live.process.stopped is not None:
        return PowerState.SHUTDOWN, "---s--"
    if live.process.suspended:
        return PowerState.SUSPENDED, "---s--"
    if live.process.paused:
        return PowerState.PAUSED, "--p---"
    return PowerState.RUNNING, "-b----" if statistics.blocked else "r-----"


def used_vcpus(record: Record, process: RunningDomain, statistics: Statistics) -> list[api.Vcpu]:
    """A running domain's VCPUs: online are those that its guest uses, though the monitor may have more."""
    if not process.vcpus_stay:
        return statistics.vcpus
    return [
        vcpu if vcpu.number < record.config.vcpus else msgspec.structs.replace(vcpu, online=False, state="--p")
        for vcpu in statistics.vcpus
    ]


def halted_vcpus(record: Record) -> list[api.Vcpu]:
    """The VCPUs of a domain that isn't running, as xm vcpu-list shows them: neither placed nor used."""
    config = record.config
    return [
        api.Vcpu(number=number, online=number < config.vcpus, state="", cpu=None, time_s=0.0)
        for number in range(config.maxvcpus or config.vcpus)
    ]


def renamed(record: Record, name: str, uuid: str | None = None) -> Record:
    """A copy of the record under another name, and another UUID where one is given."""
    uuid = uuid or record.uuid
    config = msgspec.structs.replace(record.config, name=name, uuid=uuid)
    return replace(record, uuid=uuid, name=name, config=config)


def now() -> float:
    return time.time()

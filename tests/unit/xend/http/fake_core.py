"""A core without engines: domains are entries of a dict, consoles are files."""

from __future__ import annotations

import asyncio
import builtins
import os
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from pyxen import agent_api, api, device_api, run_api, scheduling_api, snapshot_api
from pyxen.api import PowerState
from pyxen.config.model import Disk, DomainConfig, PciDevice, UsbDevice, Vif
from pyxen.engine.inotify import Inotify
from pyxen.engine.probe import Verdict
from pyxen.errors import Conflict, InvalidRequest, NotFound, PyxenError, Unavailable, Unsupported
from pyxen.paths import Roots
from pyxen.xend import host
from pyxen.xend.agent_contract import GuestCommand
from pyxen.xend.agent_link import Link
from pyxen.xend.console import Console
from pyxen.xend.cpupools import CpuPools
from pyxen.xend.devices import Devices
from pyxen.xend.events import Events
from pyxen.xend.migration.peers import Peers
from pyxen.xend.own_agent import OwnAgent
from pyxen.xend.passthrough import Passthrough
from pyxen.xend.sandboxes import Sandbox, Tell
from pyxen.xend.scheduling import Scheduling
from pyxen.xend.snapshots import Snapshots
from pyxen.xend.xenstore import Xenstore
from pyxen.xend.xenstore_map import Place


class FakeScheduling(Scheduling):
    """Takes what is asked for."""

    def __init__(self, core: FakeCore) -> None:
        self._core = core

    async def pin(self, ref: str, request: scheduling_api.PinVcpusRequest) -> api.Domain:
        if request.cpus == "9":
            raise InvalidRequest("this host has none of them")
        return self._core.get(ref)

    async def set_credit(self, ref: str, request: scheduling_api.SetCreditRequest) -> api.Domain:
        return self._core.get(ref)

    async def set_io_weight(self, ref: str, weight: int) -> api.Domain:
        return self._core.get(ref)


class FakeDevices(Devices):
    """Takes what is asked for; nothing is there."""

    def __init__(self, core: FakeCore) -> None:
        self._core = core

    def list(self, ref: str) -> device_api.DeviceList:
        domain = self._core.get(ref)
        return device_api.DeviceList(domain.domid, domain.name, [], [])

    async def attach_disk(self, ref: str, disk: Disk) -> api.Domain:
        return self._core.get(ref)

    async def detach_disk(self, ref: str, vdev: str, *, force: bool = False) -> api.Domain:
        self._core.get(ref)
        raise NotFound(f"Cannot find device '{vdev}' in domain '{ref}'")

    async def change_disc(self, ref: str, vdev: str, target: str) -> api.Domain:
        return self._core.get(ref)

    async def resize_disk(self, ref: str, vdev: str, size: int) -> api.Domain:
        return self._core.get(ref)

    async def limit_disk(self, ref: str, vdev: str, rate: int | None, iops: int | None) -> api.Domain:
        return self._core.get(ref)

    async def limit_vif(self, ref: str, which: str, rate: int) -> api.Domain:
        return self._core.get(ref)

    async def attach_vif(self, ref: str, vif: Vif) -> api.Domain:
        return self._core.get(ref)

    async def detach_vif(self, ref: str, which: str, *, force: bool = False) -> api.Domain:
        return self._core.get(ref)


class FakePassthrough(Passthrough):
    """Takes what is asked for; the host has one PCI device."""

    def __init__(self, core: FakeCore) -> None:
        self._core = core

    async def host_pci(self) -> device_api.HostPciDevices:
        return device_api.HostPciDevices([], "this host has no IOMMU", "Get one.")

    async def make_assignable(self, address: str) -> None:
        raise Unsupported("this host has no IOMMU")

    async def give_back(self, address: str) -> None:
        if address != "0000:03:00.0":
            raise NotFound(f"this host has no PCI device {address}")

    async def host_usb(self) -> device_api.HostUsbDevices:
        return device_api.HostUsbDevices([])

    async def attach_pci(self, ref: str, device: PciDevice) -> api.Domain:
        return self._core.get(ref)

    async def detach_pci(self, ref: str, address: str) -> api.Domain:
        return self._core.get(ref)

    async def attach_usb(self, ref: str, device: UsbDevice) -> api.Domain:
        return self._core.get(ref)

    async def detach_usb(self, ref: str, which: str) -> api.Domain:
        return self._core.get(ref)


class FakeCpuPools(CpuPools):
    """Pools by name, of CPUs that may be in several."""

    def __init__(self, core: FakeCore) -> None:
        self._core = core
        self._pools = {"Pool-0": [0, 1]}

    def list(self) -> scheduling_api.CpuPoolList:
        return scheduling_api.CpuPoolList([self._one(name) for name in self._pools], [])

    async def create(self, request: scheduling_api.CreateCpuPoolRequest) -> scheduling_api.CpuPool:
        if request.name in self._pools:
            raise Conflict(f"Pool '{request.name}' already exists")
        self._pools[request.name] = []
        return self._one(request.name)

    async def destroy(self, name: str) -> None:
        self._one(name)
        del self._pools[name]

    async def add_cpus(self, name: str, request: scheduling_api.CpuPoolCpusRequest) -> scheduling_api.CpuPool:
        self._one(name).cpus.append(int(request.cpus) if request.cpus.isdigit() else 9)
        return self._one(name)

    async def remove_cpus(self, name: str, request: scheduling_api.CpuPoolCpusRequest) -> scheduling_api.CpuPool:
        self._one(name).cpus.clear()
        return self._one(name)

    async def split_by_nodes(self) -> scheduling_api.CpuPoolList:
        raise Conflict("one node")

    async def migrate(self, ref: str, request: scheduling_api.SetPoolRequest) -> api.Domain:
        self._one(request.pool)
        return self._core.get(ref)

    def _one(self, name: str) -> scheduling_api.CpuPool:
        if name not in self._pools:
            raise NotFound(f"Pool '{name}' does not exist")
        return scheduling_api.CpuPool(name, self._pools[name], [])


class FakeAgents:
    """All domains have the one agent that ``link`` leads to."""

    def __init__(self, core: FakeCore) -> None:
        self._core = core
        self.link: Link | None = None

    async def begin(self, ref: str, request: agent_api.AgentRequest) -> GuestCommand:
        domain = self._core.get(ref)
        if self.link is None:
            raise Unsupported(f"no agent answered in '{domain.name}' within {request.wait_s:g} s")
        return await OwnAgent(domain.name, self.link).begin(request)

    async def interfaces(self, ref: str) -> agent_api.GuestInterfaces:
        domain = self._core.get(ref)
        return agent_api.GuestInterfaces(domain.domid, domain.name)


class FakeSandboxes:
    """A domain for each command, with the agent of all the others; ``open`` says which there are."""

    def __init__(self, core: FakeCore) -> None:
        self._core = core
        self.names: builtins.list[str] = []

    @asynccontextmanager
    async def open(self, request: run_api.RunRequest, tell: Tell) -> AsyncIterator[Sandbox]:
        if request.kernel == "none":
            raise NotFound("there is no kernel 'none'")
        await tell("Unpacking the kernel")
        domain = self._core.add(f"run-{len(self.names)}")
        self.names.append(domain.name)
        running = agent_api.Running(domid=domain.domid or 0, name=domain.name, kernel="6.1")
        try:
            yield Sandbox(running, lambda: self._core.agent.begin(domain.name, request.command))
        finally:
            self.names.remove(domain.name)


class FakeScreens:
    """All screens show the same."""

    def __init__(self, core: FakeCore) -> None:
        self._core = core

    async def picture(self, ref: str) -> bytes:
        self._core.get(ref)
        return b"\x89PNG\r\n\x1a\n"


class FakeOutgoing:
    """Migrations that arrive at once."""

    def __init__(self, core: FakeCore) -> None:
        self._core = core

    async def migrate(self, ref: str, request: api.MigrateRequest) -> AsyncGenerator[api.Progress, None]:
        domain = self._core._become(ref, PowerState.HALTED)
        return self._steps(domain, request)

    async def _steps(self, domain: api.Domain, request: api.MigrateRequest) -> AsyncGenerator[api.Progress, None]:
        yield api.Progress(step="sending the memory", fraction=0.5)
        if request.host == "nowhere":
            raise Unavailable("nowhere does not answer on port 8002")
        yield api.Progress("done", done=True, migrated=api.Migrated(domain.name, request.host, 7, 1.0, 0.1, 1 << 20, 2))

    async def cancel(self, ref: str) -> api.Domain:
        return self._core._become(ref, PowerState.RUNNING)

    here = cancel


class FakeMigration:
    def __init__(self, core: FakeCore) -> None:
        self.outgoing = FakeOutgoing(core)
        self.peers = Peers(core.folder / "peers")


class FakeSnapshots(Snapshots):
    """Names by domain."""

    def __init__(self, core: FakeCore) -> None:
        self._core = core
        self._taken: dict[str, builtins.list[str]] = {}

    def listed(self, ref: str | None = None) -> snapshot_api.SnapshotList:
        domains = self._taken if ref is None else [self._core.get(ref).name]
        return snapshot_api.SnapshotList(
            [self._one(name, each) for name in domains for each in self._taken.get(name, ())]
        )

    async def create(self, ref: str, request: snapshot_api.SnapshotRequest) -> snapshot_api.Snapshot:
        taken = self._taken.setdefault(self._core.get(ref).name, [])
        if request.name in taken:
            raise Conflict(f"'{ref}' has a snapshot '{request.name}' already")
        taken.append(request.name)
        return self._one(ref, request.name)

    async def remove(self, ref: str, name: str) -> None:
        self.must_have(ref, name)
        self._taken[self._core.get(ref).name].remove(name)

    def must_have(self, ref: str, name: str) -> None:
        if name not in self._taken.get(self._core.get(ref).name, ()):
            raise NotFound(f"Domain '{ref}' has no snapshot '{name}'")

    def _one(self, ref: str, name: str) -> snapshot_api.Snapshot:
        return snapshot_api.Snapshot(name, ref, self._core.get(ref).uuid, 0.0, [], 0)


class FakeCore:
    """Implements pyxen.xend.core.Core."""

    def __init__(self, folder: Path) -> None:
        self.events = Events(limit=100)
        self.domains: dict[str, api.Domain] = {}
        self.places: builtins.list[Place] = []
        self.xenstore = Xenstore(lambda: self.places, self.events.subscribe)
        self.devices = FakeDevices(self)
        self.passthrough = FakePassthrough(self)
        self.scheduling = FakeScheduling(self)
        self.cpupools = FakeCpuPools(self)
        self.agent = FakeAgents(self)
        self.sandboxes = FakeSandboxes(self)
        self.screens: Any = FakeScreens(self)
        self.snapshots = FakeSnapshots(self)
        self.folder = folder
        self.consoles: dict[str, Console] = {}
        self.inotify: Inotify | None = None
        self.readers: builtins.list[int] = []
        self.next_domid = 1
        self.recipes = ["tiny", "slow", "broken"]
        self.building = 0
        self.failure: Exception | None = None
        self.migration: Any = FakeMigration(self)

    def add(self, name: str, **config: Any) -> api.Domain:
        return self._add(DomainConfig(name=name, **config))

    def open_console(self, domain: api.Domain) -> Path:
        """Give a domain a console of its own; returns its folder. Needs a running loop."""
        self.inotify = self.inotify or Inotify()
        folder = self.folder / str(domain.domid)
        folder.mkdir()
        (folder / "console.log").touch()
        os.mkfifo(folder / "console.in")
        self.readers.append(os.open(folder / "console.in", os.O_RDWR | os.O_NONBLOCK))
        self.consoles[domain.uuid] = Console(folder, self.inotify)
        return folder

    def close(self) -> None:
        for console in self.consoles.values():
            console.close("test ended")
        for reader in self.readers:
            os.close(reader)
        if self.inotify is not None:
            self.inotify.close()

    def list(self) -> builtins.list[api.Domain]:
        if self.failure is not None:
            raise self.failure
        return [host.dom0(running_mib=0), *sorted(self.domains.values(), key=lambda each: each.name)]

    def get(self, ref: str) -> api.Domain:
        if ref == "Domain-0":
            return host.dom0(running_mib=0)
        for domain in self.domains.values():
            if ref in (domain.name, domain.uuid, str(domain.domid)):
                return domain
        raise NotFound(f"Domain '{ref}' does not exist")

    def vcpus(self, ref: str) -> api.VcpuList:
        domain = self.get(ref)
        return api.VcpuList(domain.domid, domain.name, [api.Vcpu(0, True, "r--", 0, 1.5)])

    async def create(self, request: api.CreateRequest) -> api.Domain:
        if any(each.name == request.config.name for each in self.domains.values()):
            raise Conflict(f"Domain '{request.config.name}' already exists")
        domain = self._add(request.config)
        domain.managed = request.managed
        return domain

    async def start(self, ref: str, *, paused: bool) -> api.Domain:
        return self._become(ref, PowerState.PAUSED if paused else PowerState.RUNNING)

    async def shutdown(self, ref: str, reason: str) -> api.Domain:
        return self._become(ref, PowerState.SHUTDOWN)

    async def destroy(self, ref: str) -> api.Domain:
        return self._become(ref, PowerState.HALTED)

    async def pause(self, ref: str) -> api.Domain:
        return self._become(ref, PowerState.PAUSED)

    async def unpause(self, ref: str) -> api.Domain:
        return self._become(ref, PowerState.RUNNING)

    async def suspend(self, ref: str) -> api.Domain:
        return self._become(ref, PowerState.SUSPENDED)

    async def resume(self, ref: str) -> api.Domain:
        return self._become(ref, PowerState.RUNNING)

    async def rename(self, ref: str, name: str) -> api.Domain:
        domain = self._become(ref, self.get(ref).power_state)
        domain.name = name
        return domain

    async def delete(self, ref: str) -> None:
        del self.domains[self._become(ref, PowerState.HALTED).uuid]

    async def built(self, ref: str) -> None:
        self.get(ref)

    async def set_vcpus(self, ref: str, count: int) -> api.Domain:
        domain = self._become(ref, self.get(ref).power_state)
        domain.vcpus = count
        return domain

    async def set_memory(self, ref: str, mib: int) -> api.Domain:
        domain = self._become(ref, self.get(ref).power_state)
        domain.memory_mib = mib
        return domain

    async def set_maxmem(self, ref: str, mib: int) -> api.Domain:
        domain = self._become(ref, self.get(ref).power_state)
        domain.maxmem_mib = mib
        return domain

    async def sysrq(self, ref: str, key: str) -> api.Domain:
        return self._become(ref, PowerState.CRASHED if key == "c" else self.get(ref).power_state)

    async def trigger(self, ref: str, trigger: api.Trigger, vcpu: int | None) -> api.Domain:
        if trigger is api.Trigger.INIT:
            raise Unsupported("cannot trigger init")
        return self._become(ref, self.get(ref).power_state)

    async def dump_core(self, ref: str, request: api.DumpRequest) -> api.CoreDump:
        domain = self._become(ref, self.get(ref).power_state)
        return api.CoreDump(domain.name, request.path or "/dump", 4096)

    async def save(self, ref: str, request: api.SaveRequest) -> api.SavedState:
        domain = self._become(ref, self.get(ref).power_state)
        return api.SavedState(domain.name, request.path, 4096)

    async def restore(self, request: api.RestoreRequest) -> api.Domain:
        raise NotFound(f"{request.path} does not exist")

    async def revert(self, ref: str, snapshot: str, request: snapshot_api.RevertRequest) -> api.Domain:
        self.snapshots.must_have(ref, snapshot)
        return self._become(ref, PowerState.PAUSED if request.paused else PowerState.RUNNING)

    async def clone(self, ref: str, request: snapshot_api.CloneRequest) -> api.Domain:
        if request.snapshot is not None:
            self.snapshots.must_have(ref, request.snapshot)
        if any(each.name == request.name for each in self.domains.values()):
            raise Conflict(f"Domain '{request.name}' already exists")
        return self._add(msgspec.structs.replace(self.get(ref).config or DomainConfig(name=ref), name=request.name))

    def console(self, ref: str) -> Console:
        domain = self.get(ref)
        console = self.consoles.get(domain.uuid)
        if console is None:
            raise Conflict(f"Domain '{domain.name}' is not running")
        return console

    async def trace(self, ref: str, only: Sequence[str]) -> AsyncGenerator[bytes, None]:
        return self._trace(self.get(ref), only)

    async def _trace(self, domain: api.Domain, only: Sequence[str]) -> AsyncGenerator[bytes, None]:
        records = [api.TraceRecord(kind, domain.name) for kind in api.TRACE_KINDS if not only or kind in only]
        for record in (*records, api.TraceRecord("end", "poweroff")):
            yield msgspec.json.encode(record) + b"\n"

    def host(self) -> api.Host:
        verdict = Verdict(False, "there is no /dev/kvm")
        return host.host_facts(engines=[], domains_running=0, roots=Roots(self.folder, self.folder), verdict=verdict)

    def topology(self) -> api.HostTopology:
        return host.host_topology()

    def dmesg(self) -> str:
        return "(XEN) hello\n"

    async def debug_keys(self, keys: str) -> None:
        if "x" in keys:
            raise InvalidRequest("there is no debug key 'x'")

    def images(self) -> api.ImageList:
        return api.ImageList(images=[], buildable=self.recipes)

    async def build_image(self, name: str, request: api.BuildRequest) -> AsyncIterator[api.Progress]:
        if name not in self.recipes:
            raise NotFound(f"there is no recipe for an image '{name}'")
        return self._build(name)

    async def remove_image(self, name: str) -> None:
        raise NotFound(f"there is no image '{name}'")

    async def _build(self, name: str) -> AsyncIterator[api.Progress]:
        self.building += 1
        try:
            yield api.Progress("unpack", fraction=0.5)
            if name == "slow":
                await asyncio.Event().wait()
            if name == "broken":
                raise PyxenError("the kernel is missing", hint="Install one.")
            yield api.Progress("done", fraction=1.0, done=True)
        finally:
            self.building -= 1

    def _add(self, config: DomainConfig) -> api.Domain:
        domain = api.Domain(
            domid=self.next_domid,
            name=config.name,
            uuid=config.uuid or str(uuid.uuid4()),
            power_state=PowerState.RUNNING,
            state="r-----",
            managed=False,
            memory_mib=config.memory,
            maxmem_mib=config.memory,
            vcpus=config.vcpus,
            maxvcpus=config.vcpus,
            cpu_time_s=0.0,
            created_at=0.0,
            config=msgspec.structs.replace(config),
        )
        self.next_domid += 1
        self.domains[domain.uuid] = domain
        return domain

    def _become(self, ref: str, state: PowerState) -> api.Domain:
        domain = self.get(ref)
        if domain.domid == 0:
            raise Conflict("Cannot change privileged domain Domain-0")
        domain.power_state = state
        return domain

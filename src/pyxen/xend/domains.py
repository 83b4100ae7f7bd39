"""What may be asked of xend: each request checked against the domain's present state, then carried out by its life."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from pathlib import Path

import msgspec

from pyxen import api, snapshot_api
from pyxen.api import ShutdownReason
from pyxen.config.check import check
from pyxen.errors import Conflict, InvalidRequest, NotFound, PyxenError
from pyxen.xend import debugging, host
from pyxen.xend.agent import Agents
from pyxen.xend.belongings import respelled, taken_along, tpm_state, variables
from pyxen.xend.building import build
from pyxen.xend.clones import Clones
from pyxen.xend.console import Console
from pyxen.xend.cpupools import CpuPools
from pyxen.xend.devices import Devices
from pyxen.xend.dump import write_core
from pyxen.xend.life import Life
from pyxen.xend.log import Ring
from pyxen.xend.migration import Migration
from pyxen.xend.passthrough import Passthrough
from pyxen.xend.prepare import complete
from pyxen.xend.records import DOMAIN_0
from pyxen.xend.registry import Live, now
from pyxen.xend.sandboxes import Sandboxes
from pyxen.xend.saving import Saving
from pyxen.xend.scheduling import Scheduling
from pyxen.xend.screens import Screens
from pyxen.xend.snapshots import Snapshots
from pyxen.xend.store import Origin, Phase, Record
from pyxen.xend.vcpus import Vcpus
from pyxen.xend.waking import Wakers
from pyxen.xend.xenstore import Xenstore
from pyxen.xend.xenstore_map import Place


class Domains:
    """The core of xend: implements :class:`pyxen.xend.core.Core`."""

    def __init__(self, life: Life, ring: Ring, migration: Migration) -> None:
        self._life = life
        self._registry = life.registry
        self._records = life.records
        self._ring = ring
        self.events = life.events
        self._saving = Saving(life)
        self.snapshots = Snapshots(life)
        self._clones = Clones(life, self.snapshots)
        self.devices = Devices(life)
        self.passthrough = Passthrough(life, self.devices)
        self.scheduling = Scheduling(life)
        self.cpupools = CpuPools(life)
        self.agent = Agents(life)
        self.snapshots.agents = self.agent
        life.on_deaf.append(self.agent.shut_down)
        self.sandboxes = Sandboxes(life, self.agent)
        self.screens = Screens(life)
        life.on_restored.append(Wakers(life, self.agent).tell_soon)
        for uuid, live in life.registry.live.items():
            # An earlier xend's clones, and what its death has left.
            if (live.spec.waking is not None or live.untold) and live.process.stopped is None:
                life.restored(life.registry.records[uuid])
        self._vcpus = Vcpus(life, self.agent, self.scheduling)
        self.migration = migration
        self.xenstore = Xenstore(self._places, life.events.subscribe)

    # Looking

    def list(self) -> list[api.Domain]:
        views = [self._registry.view(record) for record in self._registry.records.values()]
        views.sort(key=lambda domain: domain.name)
        return [self._dom0(views), *views]

    def get(self, ref: str) -> api.Domain:
        if ref in DOMAIN_0:
            return self._dom0([self._registry.view(record) for record in self._registry.records.values()])
        return self._registry.view(self._registry.find(ref))

    def vcpus(self, ref: str) -> api.VcpuList:
        return self._vcpus.listed(ref)

    async def built(self, ref: str) -> None:
        if ref in DOMAIN_0 or (record := self._registry.find(ref)).phase is not Phase.BUILDING:
            return
        async with self._registry.lock(record.uuid):
            pass

    def console(self, ref: str) -> Console:
        if ref in DOMAIN_0:
            raise Conflict("Domain-0 has no console here", hint="Its console is the host's own.")
        return self._records.running(self._registry.find(ref)).console

    async def trace(self, ref: str, only: Sequence[str]) -> AsyncGenerator[bytes, None]:
        if ref in DOMAIN_0:
            raise Conflict("Domain-0 is the host itself and makes no hypercalls", hint="strace and perf look there.")
        return await self._records.running(self._registry.find(ref)).process.trace(only)

    def host(self) -> api.Host:
        return host.host_facts(
            engines=[engine.info() for engine in self._life.engines],
            domains_running=len(self._registry.live),
            clones_waiting=self.snapshots.waiting.count,
            roots=self._life.roots,
        )

    def topology(self) -> api.HostTopology:
        return host.host_topology()

    def dmesg(self) -> str:
        return self._ring.text()

    async def debug_keys(self, keys: str) -> None:
        await debugging.press(keys, list(self._registry.live.values()), self._ring.add)

    def images(self) -> api.ImageList:
        store = self._life.images
        return api.ImageList(images=store.list(), buildable=store.buildable())

    # Changing

    async def create(self, request: api.CreateRequest) -> api.Domain:
        config = complete(request.config)
        warnings = check(config)
        assert config.uuid is not None
        self._records.check_free(config.name, config.uuid)
        record = Record(uuid=config.uuid, name=config.name, config=config, created_at=now(), managed=request.managed)
        if request.managed:
            self._registry.records[record.uuid] = record
            try:
                await self._life.store.save(record)
            except BaseException:
                self._registry.forget(record.uuid)
                raise
            self._life.tell("domain-defined", record)
            return self._with_warnings(record, warnings)
        async with self._registry.lock(record.uuid):
            warnings += await self._life.build(record, Origin.CREATE, paused=request.paused)
        return self._with_warnings(record, warnings)

    async def start(self, ref: str, *, paused: bool) -> api.Domain:
        record = self._records.changeable(ref, "start")
        async with self._registry.lock(record.uuid):
            if record.uuid in self._registry.waiting:
                await self._life.restarts.again(record)
                return self._registry.view(record)
            if record.phase is not Phase.HALTED:
                raise Conflict(f"Domain '{record.name}' is already running", hint=f"It has the id {record.domid}.")
            warnings = await self._life.build(record, Origin.START, paused=paused)
        return self._with_warnings(record, warnings)

    async def shutdown(self, ref: str, reason: str) -> api.Domain:
        record = self._records.changeable(ref, "shut down")
        async with self._registry.lock(record.uuid):
            live = self._records.running(record)
            if live.process.paused:
                raise Conflict(
                    f"Domain '{record.name}' is paused and can't hear a shutdown request",
                    hint=f"xm unpause {record.name} first, or xm destroy {record.name}",
                )
            if live.process.suspended:
                raise Conflict(
                    f"Domain '{record.name}' is suspended, it can't hear the request",
                    hint=f"xm resume {record.name} first, or xm destroy {record.name}",
                )
            await self._records.change(record, intended=reason)
            self._life.tell("domain-shutdown-requested", record, reason=reason)
            await self._life.ask(record, live, reason)
        return self._registry.view(record)

    async def destroy(self, ref: str) -> api.Domain:
        record = self._records.changeable(ref, "destroy")
        await self.migration.outgoing.interrupt(record.uuid)
        async with self._registry.lock(record.uuid):
            if record.phase is Phase.HALTED or self._registry.records.get(record.uuid) is None:
                raise Conflict(f"Domain '{record.name}' is not running")
            await self._records.change(record, intended="destroy")
            last = self._registry.view(record)
            await self._life.end(record, ShutdownReason.DESTROYED)
        last.shutdown_reason, last.domid = ShutdownReason.DESTROYED, None
        last.power_state, last.state = api.PowerState.HALTED, ""
        return last

    async def pause(self, ref: str) -> api.Domain:
        return await self._set_paused(ref, wanted=True)

    async def unpause(self, ref: str) -> api.Domain:
        return await self._set_paused(ref, wanted=False)

    async def suspend(self, ref: str) -> api.Domain:
        record = self._records.changeable(ref, "suspend")
        async with self._registry.lock(record.uuid):
            live = self._records.running(record)
            if live.process.paused:
                raise Conflict(
                    f"Domain '{record.name}' is paused, it can't hear the request",
                    hint=f"First: xm unpause {record.name}",
                )
        # Without the lock: the guest may take its time, and somebody may want it destroyed before.
        if not live.process.suspended:
            await live.process.suspend()
            self._life.tell("domain-suspended", record)
        return self._registry.view(record)

    async def resume(self, ref: str) -> api.Domain:
        record = self._records.changeable(ref, "resume")
        async with self._registry.lock(record.uuid):
            live = self._records.running(record)
            if not live.process.suspended:
                raise Conflict(f"Domain '{record.name}' is not suspended", hint=f"Suspend it: xm suspend {record.name}")
            await live.process.resume()
            self._life.tell("domain-resumed", record)
        return self._registry.view(record)

    async def rename(self, ref: str, name: str) -> api.Domain:
        record = self._records.changeable(ref, "rename")
        async with self._registry.lock(record.uuid):
            if name == record.name:
                return self._registry.view(record)
            self._records.check_free(name, None)
            previous, config = record.name, record.config
            with taken_along(previous, name, config.image, self._life.roots, self._life.images) as moved:
                await self._records.change(record, name=name, config=msgspec.structs.replace(config, name=name))
            if (live := self._registry.live.get(record.uuid)) is not None:
                live.spec = respelled(live.spec, name, moved)
                try:
                    await asyncio.to_thread(self._life.write_spec, live.spec)
                    await live.process.rename(live.spec)
                except PyxenError as error:  # only a later xend, or the guest, would read it
                    self._life.log.warning("new name not written", name=name, error=str(error))
            self._life.tell("domain-renamed", record, previous=previous)
        return self._registry.view(record)

    async def delete(self, ref: str) -> None:
        record = self._records.changeable(ref, "delete")
        async with self._registry.lock(record.uuid):
            if record.phase is not Phase.HALTED:
                raise Conflict(
                    f"Domain '{record.name}' is not halted",
                    hint=f"xm shutdown -w {record.name}, then xm delete {record.name}"
                    if record.managed
                    else f"It is not managed: it goes away by itself when it stops (xm destroy {record.name}).",
                )
            await self._life.store.delete(record.uuid)
            for kept in (variables, tpm_state):
                kept(record.name, self._life.roots).unlink(missing_ok=True)
            self._registry.forget(record.uuid)
            await self.snapshots.forget(record.uuid)
            self._life.tell("domain-deleted", record)

    async def set_vcpus(self, ref: str, count: int) -> api.Domain:
        return await self._vcpus.set(ref, count)

    async def set_memory(self, ref: str, mib: int) -> api.Domain:
        record = self._records.changeable(ref, "change")
        async with self._registry.lock(record.uuid):
            self._records.present(record)
            most = record.config.maxmem or record.config.memory
            if mib > most:
                raise InvalidRequest(
                    f"Domain '{record.name}' can have at most {most} MiB, not {mib}",
                    hint="maxmem in its description says how much it is started for; xm mem-max changes it.",
                )
            await self._records.reconfigure(record, lambda process: process.set_memory(mib), memory=mib, maxmem=most)
            self._life.tell("domain-memory-set", record, memory_mib=mib)
        return self._registry.view(record)

    async def set_maxmem(self, ref: str, mib: int) -> api.Domain:
        record = self._records.changeable(ref, "change")
        async with self._registry.lock(record.uuid):
            live, memory = self._records.present(record), record.config.memory
            if mib < memory:
                raise InvalidRequest(
                    f"Domain '{record.name}' is to have {memory} MiB, so its maximum can't be {mib}",
                    hint=f"First: xm mem-set {record.name} {mib}",
                )
            if live is not None and mib > live.spec.most_memory_mib:
                raise InvalidRequest(
                    f"Domain '{record.name}' was started for {live.spec.most_memory_mib} MiB, it can't have {mib}",
                    hint="Shut it down first: maxmem in its description says how much it is started for.",
                )
            await self._records.reconfigure(record, lambda process: process.set_max_memory(mib), maxmem=mib)
            self._life.tell("domain-maxmem-set", record, maxmem_mib=mib)
        return self._registry.view(record)

    async def sysrq(self, ref: str, key: str) -> api.Domain:
        record = self._records.changeable(ref, "press SysRq in")
        async with self._registry.lock(record.uuid):
            await self._records.running(record).process.sysrq(key)
            self._life.tell("domain-sysrq-sent", record, key=key)
        return self._registry.view(record)

    async def trigger(self, ref: str, trigger: api.Trigger, vcpu: int | None) -> api.Domain:
        record = self._records.changeable(ref, f"trigger {trigger} in")
        async with self._registry.lock(record.uuid):
            live = self._records.running(record)
            if vcpu is not None and vcpu >= live.spec.most_vcpus:
                raise InvalidRequest(f"Domain '{record.name}' has no VCPU {vcpu}")
            await self._trigger(record, live, trigger, vcpu)
        return self._registry.view(record)

    async def dump_core(self, ref: str, request: api.DumpRequest) -> api.CoreDump:
        record = self._records.changeable(ref, "dump the core of")
        if request.crash and request.reset:
            raise InvalidRequest("a domain can't be both destroyed and reset after its dump")
        live = self._records.running(record)
        path = Path(request.path) if request.path else await asyncio.to_thread(self._life.core_path, record)
        # Without the lock: it may take minutes, and somebody may want the domain destroyed before.
        size = await write_core(live.process, path, live=request.live)
        self._life.tell("domain-dumped", record, path=str(path))
        async with self._registry.lock(record.uuid):
            if self._registry.live.get(record.uuid) is live:
                if request.crash:
                    await self._records.change(record, intended="destroy")
                    await self._life.end(record, ShutdownReason.DESTROYED)
                elif request.reset:
                    await self._trigger(record, live, api.Trigger.RESET, None)
        return api.CoreDump(record.name, str(path), size)

    async def save(self, ref: str, request: api.SaveRequest) -> api.SavedState:
        return await self._saving.save(ref, request)

    async def restore(self, request: api.RestoreRequest) -> api.Domain:
        record, warnings = await self._saving.restore(request)
        return self._with_warnings(record, warnings)

    async def revert(self, ref: str, snapshot: str, request: snapshot_api.RevertRequest) -> api.Domain:
        record, warnings = await self.snapshots.revert(ref, snapshot, request)
        self._life.restored(record)
        return self._with_warnings(record, warnings)

    async def clone(self, ref: str, request: snapshot_api.CloneRequest) -> api.Domain:
        record, warnings = await self._clones.clone(ref, request)
        self._life.restored(record)
        return self._with_warnings(record, warnings)

    async def build_image(self, name: str, request: api.BuildRequest) -> AsyncIterator[api.Progress]:
        """Run the builder as a process of its own: it takes minutes, needs no xend, and can be ended."""
        if name not in self._life.images.buildable():
            raise NotFound(
                f"there is no recipe for an image '{name}'",
                hint=f"xend can build: {', '.join(self._life.images.buildable())}",
            )
        options = [word for key, value in request.options.items() for word in ("--option", f"{key}={value}")]
        folders = ("--images", str(self._life.images.images), "--kernels", str(self._life.images.kernels))
        return self._progress(name, *folders, *(["--force"] if request.force else []), *options)

    async def remove_image(self, name: str) -> None:
        users = sorted(record.name for record in self._registry.records.values() if record.config.image == name)
        if users:
            raise Conflict(f"image '{name}' is used by {', '.join(users)}", hint="Remove those domains first.")
        await asyncio.to_thread(self._life.images.remove, name)
        self.events.publish("image-removed", name=name)

    # Parts

    async def _progress(self, name: str, *words: str) -> AsyncIterator[api.Progress]:
        async with contextlib.aclosing(build(f"building '{name}'", "build", name, *words)) as steps:
            async for step in steps:
                if step.done and step.error is None:
                    self.events.publish("image-built", name=name)
                yield step

    async def _set_paused(self, ref: str, *, wanted: bool) -> api.Domain:
        record = self._records.changeable(ref, "pause" if wanted else "unpause")
        async with self._registry.lock(record.uuid):
            live = self._records.running(record)
            if live.process.paused is not wanted:
                await (live.process.pause() if wanted else live.process.unpause())
                self._life.tell("domain-paused" if wanted else "domain-unpaused", record)
                if live.untold and not wanted:
                    self._life.restored(record)
        return self._registry.view(record)

    async def _trigger(self, record: Record, live: Live, trigger: api.Trigger, vcpu: int | None) -> None:
        before = record.intended
        if trigger is api.Trigger.RESET:
            # Asked for, so it is no restart loop.
            await self._records.change(record, intended="reboot")
        try:
            await live.process.trigger(trigger, vcpu)
        except BaseException:
            await self._records.change(record, intended=before)
            raise
        self._life.tell("domain-triggered", record, trigger=trigger.value, vcpu=vcpu)

    def _places(self) -> Sequence[Place]:
        """Who has a part of xenstore now."""
        return [
            Place(
                record.domid,
                record.uuid,
                record.name,
                self._life.roots.domains / str(record.domid) / "xenstore.sock" if record.engine == "xen" else None,
                record.config.memory * 1024,
                record.config.vcpus,
            )
            for record in self._registry.records.values()
            if record.domid is not None and record.uuid in self._registry.live
        ]

    def _with_warnings(self, record: Record, warnings: Sequence[str]) -> api.Domain:
        view = self._registry.view(record)
        view.warnings = list(dict.fromkeys([*warnings, *view.warnings]))
        return view

    def _dom0(self, others: Sequence[api.Domain]) -> api.Domain:
        return host.dom0(running_mib=sum(each.memory_mib for each in others if each.domid is not None))

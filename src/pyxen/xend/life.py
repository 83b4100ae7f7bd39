"""A domain's life: building it, noticing its end, and doing what its description says of that end.

The order of the steps is what makes SIGKILL harmless. A domain is written as *building* before anything of it
exists, so that a later xend undoes (create, start) or repeats (restart) it; it is written as *running* only when its
monitor has accepted it; an order that ends it (``intended``) is written before it is carried out. Between two writes
the domain's own folder tells the rest: its process, and the events it has recorded.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import uuid as uuids
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import msgspec
from structlog.typing import FilteringBoundLogger

from pyxen.api import ShutdownReason
from pyxen.config.cpulist import ranges
from pyxen.config.model import Action, DomainConfig
from pyxen.engine.cgroup import Shares
from pyxen.engine.cgroup.shares import USUAL_IO_WEIGHT
from pyxen.engine.choose import choose
from pyxen.engine.contract import DomainSpec, Engine, RunningDomain, Stopped, Waking
from pyxen.engine.inotify import Inotify
from pyxen.engine.numa import nodes_near
from pyxen.engine.placement import resolve
from pyxen.engine.space import reserve
from pyxen.engine.template import Template
from pyxen.engine.topology import read_topology
from pyxen.errors import PyxenError, ResourceExhausted, Unsupported
from pyxen.image.files import write_file
from pyxen.image.store import ImageStore
from pyxen.paths import Roots
from pyxen.xend.console import Console
from pyxen.xend.devices import unplugged
from pyxen.xend.dump import write_core
from pyxen.xend.events import Events
from pyxen.xend.finishing import to_the_end
from pyxen.xend.host_pci import HostPci
from pyxen.xend.pool_table import PoolTable
from pyxen.xend.prepare import Prepared, prepare
from pyxen.xend.records import Records, is_given
from pyxen.xend.registry import Live, Registry, now
from pyxen.xend.restarting import Restarts
from pyxen.xend.saved import Head
from pyxen.xend.settings import Settings
from pyxen.xend.steps import reached
from pyxen.xend.store import Origin, Phase, Record, Store

_KEPT_CONSOLE_BYTES = 64 * 1024
_EVENTS_BYTES = 64 * 1024
_FIRST_REPEAT_S = 3.0


class Life:
    """Carries out the steps; holds what they need. Methods that change a domain expect its lock to be held."""

    def __init__(
        self,
        *,
        roots: Roots,
        settings: Settings,
        store: Store,
        events: Events,
        engines: list[Engine],
        inotify: Inotify,
        images: ImageStore,
        log: FilteringBoundLogger,
    ) -> None:
        self.roots = roots
        self.settings = settings
        self.store = store
        self.events = events
        self.engines = engines
        self.inotify = inotify
        self.images = images
        self.log = log
        self.registry = Registry()
        self.records = Records(self.registry, store)
        self.restarts = Restarts(self)
        self.pools = PoolTable(store)
        self.pci = HostPci(store)
        self.on_restored: list[Callable[[Live], None]] = []
        """Called when a guest goes on in another place or at another time than it was, as it may notice."""
        self.on_deaf: list[Callable[[Live, str], Awaitable[None]]] = []
        """Called when a guest doesn't do at once what it was asked to: poweroff, reboot or halt."""
        self._tasks: set[asyncio.Task[None]] = set()

    def directory(self, domid: int) -> Path:
        return self.roots.domains / str(domid)

    def tell(self, kind: str, record: Record, reason: str | None = None, **data: object) -> None:
        """Publish an event about a domain, and log it."""
        self.events.publish(kind, domid=record.domid, name=record.name, uuid=record.uuid, reason=reason, **data)
        said = {"domid": record.domid, "name": record.name, "reason": reason, **data}
        self.log.info(
            kind.replace("-", " "),
            **{key: value for key, value in said.items() if value not in (None, "")},
        )

    def restored(self, record: Record) -> None:
        """Say that a guest goes on in another place or at another time; of one that is paused, when it does.

        Before anybody listens, at xend's start, it is kept for whoever does.
        """
        live = self.registry.live[record.uuid]
        live.untold = live.process.paused or not self.on_restored
        if not live.untold:
            for call in self.on_restored:
                call(live)

    def spawn(self, step: Coroutine[Any, Any, None]) -> None:
        """Run a step in the background; what it raises is logged, and the task is kept until it ends."""

        async def run() -> None:
            try:
                await step
            except PyxenError as error:
                self.log.error("background step failed", error=str(error))
            except Exception:
                self.log.exception("background step failed")

        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def settle(self) -> None:
        """Wait until no background step is left."""
        while self._tasks:
            await asyncio.gather(*self._tasks)

    # Building

    async def build(
        self,
        record: Record,
        origin: Origin,
        *,
        paused: bool,
        config: DomainConfig | None = None,
        state: int | None = None,
        head: Head | None = None,
        late_disks: bool = False,
        accept: Callable[[RunningDomain], Awaitable[str]] | None = None,
        template: Template | None = None,
        waking: Waking | None = None,
        empty_disks: Sequence[str] = (),
        stays: Callable[[BaseException], bool] = lambda _error: False,
    ) -> list[str]:
        """Start a domain from its record; returns warnings. On an error nothing of the domain is left running.

        The record itself then goes back to where it came from: a transient domain's is deleted, a managed one's is
        halted. With ``config`` it starts by that description, which becomes the record's when it runs. With ``state``
        the guest goes on from what is read there, with ``head`` on the engine and model of a machine that it had, its
        devices in the same slots. ``accept`` may refuse what has been built by raising, or says what is meant to happen
        to it next. With a full ``template`` the guest goes on from that, and an empty one is filled. ``waking``: what
        it is to be told then. ``empty_disks``, by vdev, are filled from elsewhere before the state comes. After an
        error that ``stays`` the record is left as it is, to be built once more.
        """
        before, config = record.config, config or record.config
        record.origin = origin
        prepared: Prepared | None = None
        process: RunningDomain | None = None
        try:
            # Named before the first wait: of two creations at once one must lose.
            self.registry.records[record.uuid] = record
            chosen, warnings = await asyncio.to_thread(self.choose, config, head.engine if head else None)
            domid = await self.store.begin_build(record)
            reached("build-noted")
            prepared = await self.prepare(config)
            spec, directory = await self.lay_out(prepared, chosen, domid, head=head, waking=waking)
            reached("build-laid-out")
            process = await chosen.start(
                spec,
                directory,
                paused=paused,
                state=state,
                late_disks=late_disks,
                template=template,
                empty_disks=empty_disks,
            )
            reached("build-started")
            record.config = config
            warnings += await self.place(record, process)
            intended = await accept(process) if accept is not None else None
            await self.keep(record, chosen.name, intended)
        except BaseException as error:
            record.config = before
            # Half of it would be worse than none: a second cancellation waits.
            await to_the_end(self.undo(record, prepared, process, error, stays=stays(error)))
            raise
        self.hold(record, spec, process)
        self.tell("domain-started", record, paused=paused, engine=chosen.name)
        return [*warnings, *prepared.warnings, *process.info.warnings]

    async def prepare(self, config: DomainConfig) -> Prepared:
        """What a description comes to beside the domains that run now. Raises PyxenError; then nothing is left."""
        await self.pci.seize(config.pci)
        return await asyncio.to_thread(
            prepare,
            config,
            roots=self.roots,
            images=self.images,
            running=list(self.registry.running_specs()),
            tree=self.pci.tree,
        )

    async def lay_out(
        self, prepared: Prepared, chosen: Engine, domid: int, *, head: Head | None, waking: Waking | None
    ) -> tuple[DomainSpec, Path]:
        """The domain of this id, with nothing left open, and its folder. Raises PyxenError."""
        config = prepared.spec.config
        spec = msgspec.structs.replace(
            prepared.spec,
            domid=domid,
            uid=self._uid(domid),
            generation=(head.generation if head else None) or str(uuids.uuid4()),
            waking=waking,
            qga=head is None or head.qga,
            nodes=await asyncio.to_thread(self._nodes, config),
        )
        if head is not None:
            spec = msgspec.structs.replace(spec, machine=head.machine, slots=head.slots)
        spec = chosen.lay_out(spec)
        return spec, await asyncio.to_thread(self._make_directory, spec)

    async def keep(self, record: Record, engine: str, intended: str | None) -> None:
        """Write that a domain runs."""
        record.phase, record.origin, record.engine = Phase.RUNNING, None, engine
        record.started_at, record.intended = now(), intended
        await self.store.save(record, lasting=record.managed or intended is not None)
        reached("build-kept")

    def choose(self, config: DomainConfig, name: str | None) -> tuple[Engine, list[str]]:
        """The engine for a domain, where ``name`` names none, and its warnings.

        May take a second, once a boot: it tries what KVM can do.
        """
        engine = next((each for each in self.engines if each.name == name), None) or choose(config, self.engines)
        host = read_topology()
        resolve(config, host, self.pools.bounds(config.pool, host))
        return engine, engine.check(config)

    def _nodes(self, config: DomainConfig) -> tuple[int, ...]:
        """Where its memory should come from."""
        host = read_topology()
        return nodes_near(resolve(config, host, self.pools.bounds(config.pool, host)), host)

    async def place(self, record: Record, process: RunningDomain) -> list[str]:
        """Have the kernel run a domain where, and as much as, its description says.

        Returns what it can't be held to. Raises InvalidRequest if it can't run there at all.
        """
        config, warnings = record.config, []
        host = await asyncio.to_thread(read_topology)
        placement = resolve(config, host, self.pools.bounds(config.pool, host))
        await process.place(placement)
        if placement.astray:
            warnings.append(
                f"VCPU {ranges(placement.astray)} of '{record.name}' is pinned to CPUs that {config.pool} lacks, "
                "and runs on all of the pool's"
            )
        if len(set(placement.vcpus)) > 1 and process.one_thread:
            warnings.append(
                "QEMU has one thread for all VCPUs of a domain that has more than the host; "
                "it runs on the CPUs of all of them"
            )
        shares = Shares(config.cpu_weight, config.cpu_cap)
        try:
            process.share(shares)
        except Unsupported as error:
            warnings += [] if shares.usual else [error.message]
        try:
            process.weigh_io(config.io_weight)
        except Unsupported as error:
            warnings += [] if config.io_weight == USUAL_IO_WEIGHT else [error.message]
        return warnings

    async def _place_again(self, record: Record, process: RunningDomain) -> None:
        """What was ordered just before an earlier xend died may not have been done."""
        async with self.registry.lock(record.uuid):
            if process.stopped is None:
                for warning in await self.place(record, process):
                    self.log.warning(warning, name=record.name)

    def _uid(self, domid: int) -> int | None:
        return self.settings.first_uid + domid % 60_000 if os.geteuid() == 0 else None

    def _make_directory(self, spec: DomainSpec) -> Path:
        directory = self.directory(spec.domid)
        try:
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(mode=0o700, parents=True)
            self.write_spec(spec)
            (directory / "console.log").touch(mode=0o600)
            _make_events(directory / "events")
            os.mkfifo(directory / "console.in", 0o600)
        except OSError as error:
            raise ResourceExhausted(
                f"cannot make the folder {directory}: {error.strerror}",
                hint=f"See what room there is: df -h {self.roots.domains}",
            ) from error
        return directory

    def write_spec(self, spec: DomainSpec) -> None:
        """Write the folder's domain.json, all at once. Raises PyxenError."""
        write_file(self.directory(spec.domid) / "domain.json", [msgspec.json.encode(spec)], mode=0o600)

    async def undo(
        self,
        record: Record,
        prepared: Prepared | None,
        process: RunningDomain | None,
        error: BaseException,
        *,
        stays: bool = False,
    ) -> None:
        """Leave nothing of a domain that could not be started, but its record if that ``stays``."""
        if process is not None:
            await process.destroy()
            process.close()
        domid = record.domid
        if domid is not None:
            await asyncio.to_thread(self.sweep, self.directory(domid))
        for path in prepared.made if prepared else ():
            path.unlink(missing_ok=True)
        self.log.warning("domain not started", name=record.name, domid=domid, error=str(error))
        if stays:
            return
        try:
            await self.retire(record)
        except PyxenError as second:  # the next start of xend finds the record and no domain, and removes it
            self.log.error("record not removed", name=record.name, domid=domid, error=str(second))
        self.tell("domain-start-failed", record, reason=str(error))

    def sweep(self, directory: Path) -> None:
        """End whatever process belongs to the folder, and remove the folder."""
        for engine in self.engines:
            engine.reap(directory)
        shutil.rmtree(directory, ignore_errors=True)

    def hold(self, record: Record, spec: DomainSpec, process: RunningDomain) -> Live:
        """Keep a running domain's handle, and act when it stops."""
        console = Console(self.directory(spec.domid), self.inotify)
        live = Live(spec, process, console, accelerator=process.info.accelerator)
        self.registry.live[record.uuid] = live
        self._watch_silence(record, live)
        process.on_unplugged(lambda device: self.spawn(unplugged(self, record.uuid, spec.domid, device)))
        process.on_stopped(lambda stopped: self.spawn(self.stopped(record.uuid, spec.domid, stopped)))
        return live

    def adopt(self, record: Record, spec: DomainSpec, process: RunningDomain) -> None:
        """Hold a domain that an earlier xend started."""
        self.hold(record, spec, process)
        self.tell("domain-adopted", record)
        self.spawn(self._place_again(record, process))

    def _watch_silence(self, record: Record, live: Live) -> None:
        timeout = record.config.boot_timeout
        if not timeout or record.config.serial == "none":
            return

        def look() -> None:
            if live.console.size == 0 and not live.process.paused and live.process.stopped is None:
                live.silent = True
                self.tell("domain-silent", record, seconds=timeout)

        remaining = timeout - (now() - (record.started_at or now()))
        live.timers.append(asyncio.get_running_loop().call_later(max(remaining, 0.0), look))

    # Ending

    async def ask(self, record: Record, live: Live, reason: str) -> None:
        """Ask the guest to stop, and again while it doesn't: one that is still booting hears no power button. Where it
        goes unheard, the guest's agent is asked as well.

        After ``shutdown_timeout`` it is called unresponsive, and left alone.
        """
        await live.process.request_shutdown(reason)
        live.asking.append(asyncio.create_task(self._ask_again(record, live, reason)))

    async def _ask_again(self, record: Record, live: Live, reason: str) -> None:
        deadline = now() + self.settings.shutdown_timeout
        wait = _FIRST_REPEAT_S
        while now() + wait < deadline:
            await asyncio.sleep(wait)
            wait *= 2
            if live.process.stopped is not None or record.intended != reason:
                return
            with contextlib.suppress(PyxenError):  # it may be paused, or stop just now
                await live.process.request_shutdown(reason)
                for call in self.on_deaf:
                    await call(live, reason)
        await asyncio.sleep(max(deadline - now(), 0.0))
        if live.process.stopped is None:
            self.tell("domain-unresponsive", record, seconds=self.settings.shutdown_timeout)

    async def stopped(self, uuid: str, domid: int, stopped: Stopped) -> None:
        """Do what the description says of this end. Called once for each end, also for one found at recovery."""
        async with self.registry.lock(uuid):
            record = self.registry.records.get(uuid)
            if record is None or record.domid != domid or record.phase is not Phase.RUNNING:
                return  # destroyed meanwhile
            if is_given(record):
                return  # the other host says first if it runs there
            reason = _meant(record, stopped)
            record.last_reason = reason
            action = _action(record, reason)
            self.tell("domain-stopped", record, reason=reason.value, action=action.value, detail=stopped.detail)
            if action in (Action.COREDUMP_DESTROY, Action.COREDUMP_RESTART, Action.RENAME_RESTART):
                await self._dump(record)
            if action in (Action.RESTART, Action.COREDUMP_RESTART):
                await self.restarts.restart(record, asked=record.intended == "reboot")
            elif action is Action.RENAME_RESTART:
                await self.restarts.rename_restart(record)
            elif action is Action.PRESERVE:
                await self._preserve(record)
            else:
                await self.end(record, reason)

    async def end(self, record: Record, reason: ShutdownReason) -> None:
        """End the process if it is there, and let go of the domain; a managed one stays, halted."""
        record.last_reason = reason
        live = self.registry.live.get(record.uuid)
        if live is not None:
            await live.process.destroy()
        domid, console = record.domid, await self._let_go(record)
        try:
            # First: who reads on its console that it has ended may take its name at once.
            await self.retire(record)
        finally:
            await self._close(domid, console, reason)
        self.tell("domain-ended", record, reason=reason.value)

    async def release(self, record: Record, reason: ShutdownReason) -> None:
        """Close what is held of a domain whose process has ended, keep its last words, remove its folder."""
        await self._close(record.domid, await self._let_go(record), reason)

    async def _let_go(self, record: Record) -> Console | None:
        """Close what is held of a domain but its console, whose last words are kept."""
        live = self.registry.live.pop(record.uuid, None)
        if live is None:
            return None
        live.cancel()
        await asyncio.to_thread(self._keep_last_words, record.name, live.console)
        live.process.close()
        return live.console

    async def _close(self, domid: int | None, console: Console | None, reason: ShutdownReason) -> None:
        if console is not None:
            console.close(reason.value)
        if domid is not None:
            await asyncio.to_thread(self.sweep, self.directory(domid))

    def _keep_last_words(self, name: str, console: Console) -> None:
        """The end of the console outlives the domain, in STATE/console/NAME.log, for whoever asks why it died."""
        with contextlib.suppress(OSError):
            folder = self.roots.state / "console"
            folder.mkdir(mode=0o700, exist_ok=True)
            (folder / f"{name}.log").write_bytes(console.tail(_KEPT_CONSOLE_BYTES))

    async def retire(self, record: Record) -> None:
        """Take a domain that has no process out of the running ones."""
        self.registry.waiting.pop(record.uuid, None)
        if record.managed:
            record.phase, record.origin, record.domid, record.engine = Phase.HALTED, None, None, None
            record.started_at, record.intended = None, None
            await self.store.save(record)
        else:
            self.registry.forget(record.uuid)
            await self.store.delete(record.uuid)

    async def take_down(self, record: Record, intended: str) -> None:
        """End a domain's process, if it has one, so that it can be built from something else.

        The store says *building* from here on, and in ``intended`` for what: a later xend goes on with that.
        """
        self.registry.records[record.uuid] = record
        try:
            await self.records.change(record, phase=Phase.BUILDING, origin=Origin.RESTART, intended=intended)
        except BaseException:
            if record.domid is None and not record.managed:
                self.registry.forget(record.uuid)
            raise
        if (live := self.registry.live.get(record.uuid)) is not None:
            await live.process.destroy()
        await self.release(record, ShutdownReason.DESTROYED)

    async def _preserve(self, record: Record) -> None:
        record.phase = Phase.PRESERVED
        await self.store.save(record)
        self.tell("domain-preserved", record)

    def core_path(self, record: Record) -> Path:
        """Where a core goes that nobody has named a file for: STATE/dump/NAME-ID-TIME.core. Raises OSError."""
        folder = self.roots.state / "dump"
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder / f"{record.name}-{record.domid}-{int(now())}.core"

    async def _dump(self, record: Record) -> None:
        """Write a core; a dump that fails is logged and stops nothing."""
        live = self.registry.live.get(record.uuid)
        if live is None:
            return
        try:
            path = await asyncio.to_thread(self.core_path, record)
            await write_core(live.process, path)
        except (PyxenError, OSError) as error:
            self.log.error("core not dumped", name=record.name, error=str(error))
        else:
            self.tell("domain-dumped", record, path=str(path))


def _make_events(path: Path) -> None:
    """The file in which the monitor writes what happens to the guest. A full disk must not hide an end: it has room.

    Raises OSError, also where there is none now.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        reserve(fd, _EVENTS_BYTES)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
    finally:
        os.close(fd)


def _meant(record: Record, stopped: Stopped) -> ShutdownReason:
    """Why the domain really stopped: a power-off that somebody asked for as a reboot is a reboot."""
    if record.intended == "destroy":
        return ShutdownReason.DESTROYED
    if record.intended == "reboot" and stopped.reason is ShutdownReason.POWEROFF:
        return ShutdownReason.REBOOT
    if record.intended == "halt" and stopped.reason is ShutdownReason.POWEROFF:
        return ShutdownReason.HALT
    return stopped.reason


def _action(record: Record, reason: ShutdownReason) -> Action:
    config = record.config
    match reason:
        case ShutdownReason.POWEROFF:
            return config.on_poweroff
        case ShutdownReason.REBOOT:
            return config.on_reboot
        case ShutdownReason.CRASH | ShutdownReason.WATCHDOG | ShutdownReason.FAILED:
            return config.on_crash
        case _:
            return Action.DESTROY

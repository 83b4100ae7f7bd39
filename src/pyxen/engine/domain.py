"""A domain's process as xend holds it: what all engines have in common.

The process and its ``events`` file are watched; whatever tells that the guest is gone settles ``stopped``. Engines
add how to speak to their monitor.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import msgspec

from pyxen.api import AgentKind, ShutdownReason
from pyxen.config.model import Disk, Vif, vif_device, vif_numbers
from pyxen.engine import cgroup
from pyxen.engine.contract import DomainSpec, Limits, Moving, Pluggable, StartedInfo, Statistics, Stopped
from pyxen.engine.events import EventLog
from pyxen.engine.forwards import describe
from pyxen.engine.inotify import Inotify
from pyxen.engine.passthrough import vfio
from pyxen.engine.passthrough.tree import HostTree
from pyxen.engine.placement import ONE_THREAD, Placement, affinity, place, place_helper
from pyxen.engine.process import Process, find, kill_all, last_words, read_pid
from pyxen.engine.sockets import AGENT_PORTS, AGENTS, connect
from pyxen.engine.threads import ThreadClock, vcpu_threads
from pyxen.errors import Conflict, EngineError, Unavailable, Unsupported

_INFO = "info.json"
_THREADS_S, _THREADS_LOOK_S = 2.0, 0.01
_OUT_OF_BOUNDS = "it made a system call that its jail does not allow; with PYXEN_JAIL=trap it would say which"


def save_info(directory: Path, info: StartedInfo) -> None:
    """Keep what became known at the start, for an xend that adopts the domain."""
    path = directory / _INFO
    path.write_bytes(msgspec.json.encode(info))
    path.chmod(0o600)


def load_info(directory: Path) -> StartedInfo:
    """The same, read back; empty if it was never written."""
    try:
        return msgspec.json.decode((directory / _INFO).read_bytes(), type=StartedInfo)
    except (OSError, msgspec.DecodeError):
        return StartedInfo()


class ProcessDomain(ABC):
    """One domain's process. Made on xend's event loop.

    ``pid`` None: there is no process any more, ``events`` alone tell what happened.
    """

    ends_agent_frames = False

    def __init__(
        self, spec: DomainSpec, directory: Path, pid: int | None, inotify: Inotify, info: StartedInfo | None = None
    ) -> None:
        self.directory = directory
        self.spec = spec
        self._info = info or load_info(directory)
        self._pid = pid or 0
        self._stopped: Stopped | None = None
        self._callbacks: list[Callable[[Stopped], None]] = []
        self._unplugged: Callable[[str], None] | None = None
        self._left: list[str] = []
        self._freeing: set[asyncio.Task[None]] = set()
        self._history = True
        """What happened before this xend took it over is being read."""
        self._changed = asyncio.Event()
        self._destroying = False
        self._events = EventLog(directory / "events")
        self._unwatch: Callable[[], None] | None = inotify.watch(directory / "events", self._look)
        self._process: Process | None = None
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process = Process(pid, self._exited)
        self._clock = ThreadClock(self._pid, spec.most_vcpus)
        self.placement = Placement()
        """What was asked for last."""
        self._look()
        if self._process is None:
            self._exited()
        self._history = False

    @classmethod
    def adopt(cls, spec: DomainSpec, directory: Path, inotify: Inotify) -> Self | None:
        """Take over what an earlier xend started; None if no process is left and no event says why."""
        pid = read_pid(directory)
        try:
            domain = cls(spec, directory, pid, inotify)
        except FileNotFoundError:  # no events file: the folder went with the host's last boot
            return None
        if not domain.alive and domain._events.fate.stopped is None:
            domain.close()
            return None
        return domain

    @property
    def domid(self) -> int:
        return self.spec.domid

    @property
    def pid(self) -> int:
        return self._pid

    @property
    def paused(self) -> bool:
        return self._stopped is None and self._events.fate.paused

    @property
    def stalled(self) -> str | None:
        return self._events.fate.stalled if self.paused else None

    @property
    def suspended(self) -> bool:
        return self._stopped is None and self._events.fate.suspended

    @property
    def since(self) -> float | None:
        return self._events.fate.since

    @property
    def stopped(self) -> Stopped | None:
        return self._stopped

    @property
    def info(self) -> StartedInfo:
        return self._info

    @property
    def alive(self) -> bool:
        """Is there a process, be its guest stopped or not?"""
        return self._process is not None and self._process.alive

    @property
    def answer(self) -> dict[str, Any]:
        """What the monitor said of itself when it was ready."""
        return self._events.fate.answer

    def on_stopped(self, callback: Callable[[Stopped], None]) -> None:
        if self._stopped is None:
            self._callbacks.append(callback)
        else:
            asyncio.get_running_loop().call_soon(callback, self._stopped)

    async def ready(self, timeout_s: float | None) -> None:
        """Wait until the monitor has accepted everything. Raises EngineError with its words if it has not."""
        try:
            async with asyncio.timeout(timeout_s):
                while not self._events.fate.ready and self.alive:
                    await self._next_change()
        except TimeoutError:
            raise EngineError(
                f"the monitor of '{self.spec.config.name}' did not answer within {timeout_s:g} s"
            ) from None
        self._check_errors()
        self._check_alive()

    async def settle(self, timeout_s: float | None, *, paused: bool, loading: bool = False) -> None:
        """Wait until it is ready and, unless ``paused``, its guest runs; on an error nothing of it is left.

        ``loading``: it takes in a state by itself, and is ready when it has.
        """
        try:
            await self.ready(timeout_s)
            while loading and self.alive and not self._events.fate.loaded:
                self._check_errors()
                await self._next_change()
            if loading:
                self._check_alive()
            if not paused:
                await self.wait_paused(False)
        except BaseException:
            await self.destroy()
            self.close()
            raise

    async def wait_paused(self, paused: bool) -> None:
        """Wait until the events say that the guest is (not) paused, or has stopped.

        Raises EngineError if the monitor refused what it was started with.
        """
        while self._stopped is None and self._events.fate.paused is not paused:
            self._check_errors()
            await self._next_change()

    async def wait_suspended(self, suspended: bool, timeout_s: float) -> None:
        """Wait until the events say that the guest is (not) suspended, or has stopped. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            while self._stopped is None and self._events.fate.suspended is not suspended:
                await self._next_change()

    async def destroy(self) -> None:
        self._destroying = True
        if self._process is not None:
            await self._process.terminate()

    @property
    def online(self) -> Collection[int]:
        """The VCPUs that the guest has now."""
        online = self._events.fate.online
        return range(self.spec.config.vcpus) if online is None else online

    @abstractmethod
    async def pause(self) -> None: ...

    @abstractmethod
    async def unpause(self) -> None: ...

    async def rename(self, spec: DomainSpec) -> None:
        self.spec = spec

    async def become(self, spec: DomainSpec, *, paused: bool) -> None:
        await self.rename(spec)
        if not paused:
            await self.unpause()

    async def screendump(self, file: int) -> None:
        raise Unsupported(f"'{self.spec.config.name}' has no screen", hint=f"xm console {self.spec.config.name}")

    async def freeze(self) -> None:
        if not self.paused:
            await self.pause()

    async def thaw(self) -> None:
        await self.unpause()

    async def machine(self) -> str:
        raise self._unsaveable()

    async def save_state(self, stream: int) -> None:
        raise self._unsaveable()

    @property
    def agents(self) -> Collection[AgentKind]:
        if self._stopped is not None:
            return ()
        return [kind for kind, port in AGENT_PORTS.items() if port in self._events.fate.ports]

    async def until_agent(self, kind: AgentKind) -> None:
        while self._stopped is None and kind not in self.agents:
            await self._next_change()

    async def agent(self, kind: AgentKind = AgentKind.PYXEN) -> socket.socket:
        name = self.spec.config.name
        if self._stopped is not None:
            raise Conflict(f"cannot speak to the agent of '{name}': its guest has stopped")
        try:
            return await connect(self.directory, AGENTS[kind])
        except FileNotFoundError:
            raise Unsupported(
                f"no way leads to an agent in '{name}'", hint="It will when it is started anew."
            ) from None
        except OSError as error:
            raise Unavailable(f"cannot speak to the agent of '{name}': {error.strerror}") from error

    async def copy_disk(self, vdev: str, bandwidth: int | None) -> None:
        raise self._uncopyable()

    async def copies(self) -> tuple[int, int, bool]:
        raise self._uncopyable()

    async def abandon_copies(self) -> None:  # noqa: B027  there are none, where there can be none
        pass

    async def send_live(
        self,
        stream: int,
        limits: Limits,
        progress: Callable[[Moving], None],
        copied: Callable[[], None] | None = None,
    ) -> None:
        started = time.monotonic()
        await self.freeze()
        await self.save_state(stream)
        progress(Moving(0, 0, 1, time.monotonic() - started))

    async def debug_key(self, key: str) -> list[str]:
        raise Unsupported(
            f"QEMU runs '{self.spec.config.name}', and knows none of Xen's debug keys",
            hint="pyxen's own hypervisor does: domains with engine=xen.",
        )

    async def plug(self, device: Pluggable, spec: DomainSpec) -> None:
        raise self._fixed()

    async def unplug(self, device: str, *, force: bool = False) -> None:
        raise self._fixed()

    async def change_disc(self, disk: Disk, spec: DomainSpec) -> None:
        raise self._fixed()

    async def limit(self, device: Disk | Vif, spec: DomainSpec) -> None:
        raise self._fixed()

    async def resize_disk(self, vdev: str, size: int) -> None:
        raise self._fixed()

    def on_unplugged(self, callback: Callable[[str], None]) -> None:
        self._unplugged = callback
        for device in self._left:
            asyncio.get_running_loop().call_soon(callback, device)
        self._left.clear()

    def _has_left(self, device: str) -> None:
        """A device is gone, and what it stood on is free."""
        if self._unplugged is None:
            self._left.append(device)
        else:
            asyncio.get_running_loop().call_soon(self._unplugged, device)

    def _free_soon(self, device: str) -> None:
        """Have ``_free`` do its work in the background."""
        task = asyncio.create_task(self._free(device))
        self._freeing.add(task)
        task.add_done_callback(self._freeing.discard)

    async def _free(self, device: str) -> None:
        """Free what a device that has left stood on, and say that it ``_has_left``."""
        self._forget_forwards(device)
        self._has_left(device)

    def _forget_forwards(self, device: str) -> None:
        """The ports of a network interface that has left lead nowhere any more."""
        for number, vif in zip(vif_numbers(self.spec.config.vif), self.spec.config.vif, strict=True):
            if vif_device(number) == device:
                gone = set(map(describe, vif.forward))
                self.info.forwards[:] = [forward for forward in self.info.forwards if forward not in gone]
                save_info(self.directory, self.info)

    def _fixed(self) -> Unsupported:
        return Unsupported(
            f"the engine of '{self.spec.config.name}' can't change a domain's devices while it runs yet",
            hint="The QEMU engine can: engine=qemu in the domain's description.",
        )

    def _uncopyable(self) -> Unsupported:
        return Unsupported(
            f"the engine of '{self.spec.config.name}' can't copy disks while it runs yet",
            hint="Have the hosts share the folder that they lie in.",
        )

    def _unsaveable(self) -> Unsupported:
        return Unsupported(
            f"the engine of '{self.spec.config.name}' can't save a guest's state yet",
            hint="The Xen engine and QEMU's can.",
        )

    def statistics(self) -> Statistics:
        statistics = replace(self._clock.read(self.online), memory_mib=self._memory_mib())
        if not self.paused:
            return statistics
        vcpus = [msgspec.structs.replace(vcpu, state="--p") for vcpu in statistics.vcpus]
        return replace(statistics, vcpus=vcpus, blocked=True)

    async def place(self, placement: Placement) -> None:
        self.placement = placement
        if placement.free:
            return
        threads = vcpu_threads(self._pid)
        deadline = asyncio.get_running_loop().time() + _THREADS_S
        # A VCPU's thread gives itself its name, perhaps only just now.
        while self.alive and not (ONE_THREAD in threads or threads.keys() >= set(self._threaded())):
            if asyncio.get_running_loop().time() > deadline:
                break
            await asyncio.sleep(_THREADS_LOOK_S)
            threads = vcpu_threads(self._pid)
        if self.alive:
            place(self._pid, threads, placement)
            for helper in await asyncio.to_thread(find, self.directory):
                if helper != self._pid:
                    place_helper(helper, placement)

    def _threaded(self) -> Collection[int]:
        """The VCPUs that have threads."""
        return self.online

    def share(self, shares: cgroup.Shares) -> None:
        if not cgroup.share(self.spec.uuid, shares):
            raise Unsupported(
                f"xend can't weigh or cap '{self.spec.config.name}' here: it has no cpu controller of cgroups",
                hint="As root on a host with cgroup v2 (or v1's cpu controller) it has.",
            )

    def weigh_io(self, weight: int) -> None:
        if not cgroup.weigh_io(self.spec.uuid, weight):
            raise Unsupported(
                f"xend can't weigh the disks of '{self.spec.config.name}' here: it has no io controller of cgroup v2"
            )

    def affinities(self) -> Mapping[int, frozenset[int]]:
        threads = vcpu_threads(self._pid) if self.alive else {}
        if ONE_THREAD in threads:
            threads = dict.fromkeys(self.online, threads[ONE_THREAD])
        found = {number: affinity(thread) for number, thread in threads.items()}
        return {number: cpus for number, cpus in found.items() if cpus is not None}

    @property
    def vcpus_stay(self) -> bool:
        return False

    @property
    def one_thread(self) -> bool:
        return self.alive and ONE_THREAD in vcpu_threads(self._pid)

    async def trace(self, only: Sequence[str]) -> AsyncGenerator[bytes, None]:
        raise Unsupported(
            f"QEMU runs '{self.spec.config.name}', and does not say what its guest asks of it",
            hint="pyxen's own hypervisor does: domains with engine=xen can be traced.",
        )

    def close(self) -> None:
        for task in self._freeing:
            task.cancel()
        if self._unwatch is not None:
            self._unwatch()
            self._unwatch = None
        if self._process is not None:
            self._process.close()
        self._events.close()
        self._callbacks.clear()

    def _memory_mib(self) -> int | None:
        size = self._events.fate.memory_bytes
        return None if size is None else round(size / 2**20)

    def _check_alive(self) -> None:
        if not self.alive:
            raise EngineError(self._words() or f"the monitor of '{self.spec.config.name}' ended without a word")

    def _check_errors(self) -> None:
        if self._events.fate.errors:
            raise EngineError(f"the monitor of '{self.spec.config.name}' failed: {self._events.fate.errors[0]}")

    async def _next_change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _look(self) -> None:
        fate = self._events.read()
        if fate.stopped is not None:
            self._stop(fate.stopped)
        self._changed.set()

    def _exited(self) -> None:
        """The process is gone. What it wrote last is read first: it may have said why."""
        self._look()
        if self._stopped is None:
            reason = ShutdownReason.DESTROYED if self._destroying else ShutdownReason.FAILED
            self._stop(Stopped(reason, "" if self._destroying else self._words()))
        self._changed.set()

    def _stop(self, stopped: Stopped) -> None:
        if self._stopped is not None:
            return
        self._stopped = stopped
        callbacks, self._callbacks = self._callbacks, []
        loop = asyncio.get_running_loop()
        for callback in callbacks:
            loop.call_soon(callback, stopped)

    def _words(self) -> str:
        words = last_words(self.directory / "stderr")
        if self._process is not None and self._process.ended_by == signal.SIGSYS:
            return f"{words}\n{_OUT_OF_BOUNDS}".strip()
        return words


def no_drive(disk: Disk, spec: DomainSpec) -> Unsupported:
    """A paravirtual disk can't tell its guest that there is another disc in it."""
    return Unsupported(
        f"{disk.vdev} of '{spec.config.name}' is no drive whose disc can be changed: a pvh domain has none",
        hint=f"Another disk can be attached: xm block-attach {spec.config.name} …",
    )


def reap(directory: Path) -> None:
    """Kill whatever process belongs to a domain's folder, let its cgroup and its PCI devices go. Blocking."""
    kill_all(directory)
    with contextlib.suppress(OSError, msgspec.DecodeError):
        spec = msgspec.json.decode((directory / "domain.json").read_bytes(), type=DomainSpec)
        cgroup.remove(spec.uuid)
        vfio.close_again(HostTree(), spec.config.pci)


def write_pid(directory: Path, pid: int) -> None:
    """Name the domain's process in its folder, all at once: a half-written number would be another process."""
    path = directory / "pid.new"
    path.write_text(f"{pid}\n")
    path.replace(directory / "pid")

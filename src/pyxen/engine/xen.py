"""pyxen's own hypervisor as the monitor of a domain: a process of ``pyxen.hypervisor`` on /dev/kvm."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import time
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from pyxen import __version__
from pyxen.api import AgentKind, EngineInfo, Trigger
from pyxen.config.model import Disk, DiskFormat, DomainConfig, DomainType, Vif, vif_device, vif_number, vif_numbers
from pyxen.engine import cgroup, plugs
from pyxen.engine.contract import DomainSpec, Limits, Moving, Pluggable, RunningDomain, StartedInfo
from pyxen.engine.descriptors import Descriptors
from pyxen.engine.domain import ProcessDomain, no_drive, reap, save_info, write_pid
from pyxen.engine.hugepages import check_hugepages
from pyxen.engine.inotify import Inotify
from pyxen.engine.probe import kvm_verdict
from pyxen.engine.process import end_all, marker, spawn
from pyxen.engine.qemu.disks import check_disks
from pyxen.engine.qemu.launch import find_binary
from pyxen.engine.sockets import AGENT, listen
from pyxen.engine.storage import DISKS_SOCKET, serve, served
from pyxen.engine.template import Template
from pyxen.engine.trace import follow
from pyxen.engine.vifs import check_networks, open_networks
from pyxen.errors import (
    ConfigError,
    Conflict,
    EngineError,
    InvalidRequest,
    PyxenError,
    ResourceExhausted,
    Unsupported,
)
from pyxen.hypervisor.jail import Report
from pyxen.hypervisor.state.sections import VERSION

_READY_S = 120.0
_ANSWER_S = 30.0
_LOOK_S = 5.0
_SUSPEND_S = 60.0
_PROGRESS_S = 0.5
_AGENT_BUFFER = 8192
_MACHINE = f"xen-{VERSION}"
"""All else that a reader must have the state itself says."""
_REFUSALS: dict[str, type[PyxenError]] = {
    kind.code: kind for kind in (InvalidRequest, Unsupported, Conflict, ResourceExhausted)
}
_QCOW2 = (".qcow2", ".qcow")
_MOST_VCPUS = 64


class XenDomain(ProcessDomain):
    """Speaks to its hypervisor process over ``control.sock``, one connection for each order."""

    ends_agent_frames = True

    async def agent(self, kind: AgentKind = AgentKind.PYXEN) -> socket.socket:
        connection = await super().agent(kind)
        # What is in it can't be called back, and the guest would have to read it.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _AGENT_BUFFER)
        return connection

    async def pause(self) -> None:
        await self._order("pause", "pause")
        await self.wait_paused(True)

    async def rename(self, spec: DomainSpec) -> None:
        await super().rename(spec)
        await self._execute("rename", {"name": spec.config.name})

    async def unpause(self) -> None:
        await self._attach_late()
        await self._order("unpause", "unpause")
        await self.wait_paused(False)

    async def suspend(self) -> None:
        await self._order("suspend", "shutdown", reason="suspend")
        try:
            await self.wait_suspended(True, _SUSPEND_S)
        except TimeoutError:
            if not await self._suspends_yet():
                raise EngineError(
                    f"'{self.spec.config.name}' did not suspend within {_SUSPEND_S:g} s",
                    hint="A guest that is still booting, or hung, hears nothing; xm pause needs no help from it.",
                ) from None
        if self.stopped is not None:
            raise Conflict(f"'{self.spec.config.name}' stopped instead of suspending itself")

    async def resume(self) -> None:
        await self._order("resume", "resume")
        await self.wait_suspended(False, _ANSWER_S)

    async def _suspends_yet(self) -> bool:
        """Withdraw the request, or wait for what comes of it, if the guest has heard it."""
        if (await self._execute("withdraw", {}))["expected"]:
            with contextlib.suppress(TimeoutError):
                await self.wait_suspended(True, _SUSPEND_S)
        return self.suspended or self.stopped is not None

    async def freeze(self) -> None:
        """The guest suspends itself: what it knows of event channels, grants and devices it can then make anew."""
        if self.paused:
            raise Conflict(
                f"'{self.spec.config.name}' is paused, so it can't put itself in order",
                hint=f"Let it run: xm unpause {self.spec.config.name}",
            )
        if not self.suspended:
            await self.suspend()

    async def thaw(self) -> None:
        if self.stopped is None:
            await self._execute("stop-sending", {})
            await self._attach_late()
        # An earlier xend may have asked it to, a moment ago.
        if self.suspended or (await self._suspends_yet() and self.suspended):
            await self.resume()

    async def machine(self) -> str:
        return _MACHINE

    async def save_state(self, stream: int) -> None:
        # As long as the reader takes.
        await self._execute("save-state", {}, [stream], timeout_s=None)

    async def send_live(
        self,
        stream: int,
        limits: Limits,
        progress: Callable[[Moving], None],
        copied: Callable[[], None] | None = None,
    ) -> None:
        if self.paused or self.suspended:
            await super().send_live(stream, limits, progress)
        else:
            await self._send_running(stream, limits, progress)
        await self._let_go_of_disks()

    async def _send_running(self, stream: int, limits: Limits, progress: Callable[[Moving], None]) -> None:
        pace = {"bandwidth": limits.bandwidth, "downtime_ms": limits.downtime_ms, "converge": limits.converge}
        sending = asyncio.create_task(self._execute("send-memory", pace, [stream], timeout_s=None))
        try:
            while not sending.done():
                await asyncio.wait((sending,), timeout=_PROGRESS_S)
                progress(_moving(await self._execute("sending", {})))
            await sending
        finally:
            sending.cancel()
        frozen = time.monotonic()
        await self.freeze()
        answer = await self._execute("save-state", {}, timeout_s=None)
        progress(replace(_moving(answer), stopped_s=time.monotonic() - frozen))

    async def request_shutdown(self, reason: str) -> None:
        await self._order("shut down", "shutdown", reason=reason)

    async def destroy(self) -> None:
        await super().destroy()
        # Its disks' server, too; asked to end, since what it has cached belongs into the images.
        await asyncio.to_thread(end_all, self.directory)
        cgroup.remove(self.spec.uuid)

    def note_jail(self) -> None:
        """Take what the process says of its jail into ``info``."""
        try:
            report = msgspec.convert(self.answer.get("jail"), Report)
        except msgspec.ValidationError:
            report = Report(missing=["all of it, for what is known"])
        self.info.jail = [*report.layers, *self.info.jail]
        if report.missing:
            self.info.warnings.append(f"the jail of its process has gaps: {'; '.join(report.missing)}")

    async def set_vcpus(self, count: int) -> None:
        await self._order("change the VCPUs of", "set-vcpus", count=count)

    async def set_memory(self, mib: int) -> None:
        await self._order("change the memory of", "set-memory", mib=mib)

    async def set_max_memory(self, mib: int) -> None:
        await self._order("change the memory of", "set-max-memory", mib=mib)

    async def sysrq(self, key: str) -> None:
        await self._order("press SysRq in", "sysrq", key=key)

    async def trigger(self, trigger: Trigger, vcpu: int | None) -> None:
        await self._order(f"trigger {trigger} in", "trigger", trigger=trigger, vcpu=vcpu)

    async def debug_key(self, key: str) -> list[str]:
        return msgspec.convert(await self._execute("debug-key", {"key": key}), list[str])

    async def dump_core(self, file: int, *, live: bool = False) -> None:
        # A core of many GiB takes its time.
        await self._execute("dump-core", {"live": live}, [file], timeout_s=None)

    async def plug(self, device: Pluggable, spec: DomainSpec) -> None:
        self._refuse_stopped("plug a device into")
        if isinstance(device, Disk):
            await plugs.add_disk(self._execute, device, self.directory, spec.uid)
        elif not isinstance(device, Vif):
            raise Unsupported(f"'{spec.config.name}' is a pvh domain: it has neither PCI devices of the host nor USB")
        else:
            number = vif_number(spec.config.vif, device)
            await plugs.add_vif(self._execute, number, spec, device, self.directory, self.info)
            save_info(self.directory, self.info)
        self.spec = spec
        await self.place(self.placement)  # what serves the device may have been started for it

    async def unplug(self, device: str, *, force: bool = False) -> None:
        await self._order("unplug a device of", "detach", device=device, force=force)

    async def change_disc(self, disk: Disk, spec: DomainSpec) -> None:
        self._refuse_stopped("change a disc of")
        raise no_drive(disk, spec)

    async def limit(self, device: Disk | Vif, spec: DomainSpec) -> None:
        if isinstance(device, Disk):
            await self._order("limit a disk of", "limit-disk", device=device.vdev, rate=device.rate, iops=device.iops)
        else:
            number = vif_number(spec.config.vif, device)
            await self._order("limit a network interface of", "limit-vif", number=number, rate=device.rate)
        self.spec = spec

    async def resize_disk(self, vdev: str, size: int) -> None:
        self._refuse_stopped("resize a disk of")
        disk = self._disk(vdev)
        assert disk is not None
        await plugs.resize(self._execute, disk, size, self.directory)

    async def _let_go_of_disks(self) -> None:
        """Leave those that are served, whose files are locked, to whoever goes on with the state."""
        disks = served(self.spec.config.disk)
        self.info.late[:] = [disk.vdev for disk in disks]
        save_info(self.directory, self.info)
        for disk in disks:
            await plugs.let_go(self._execute, disk, self.directory)

    async def _attach_late(self) -> None:
        """Give it the disks that were another process's up to now; again from the start, if a xend died over it."""
        if not self.info.late:
            return
        self._refuse_stopped("unpause")
        there = await self._execute("devices", {})
        for vdev in self.info.late:
            if (disk := self._disk(vdev)) is None:
                continue
            if vdev in there["held"]:
                await plugs.take_again(self._execute, disk, self.directory, self.spec.uid)
            elif vdev not in there["attached"]:
                await plugs.add_disk(self._execute, disk, self.directory, self.spec.uid)
        self.info.late.clear()
        save_info(self.directory, self.info)

    async def learn_devices(self) -> None:
        """See which devices of the spec there are: an earlier xend may have died while one came, went or grew."""
        if not self.alive:
            return
        with contextlib.suppress(PyxenError):
            there = await self._execute("devices", {}, timeout_s=_LOOK_S)
            for device in self._wanted():
                if device not in (*there["attached"], *self.info.late):
                    await self._free(device)
            for vdev in there["held"]:
                if vdev not in self.info.late and (disk := self._disk(vdev)) is not None:
                    await plugs.reconnect(self._execute, disk, 0, self.directory)

    def _look(self) -> None:
        super()._look()
        for device in self._events.fate.unplugged:
            # Nor what could not be plugged in, and was taken away again.
            if not self._history and device in self._wanted():
                self._free_soon(device)
        self._events.fate.unplugged.clear()

    async def _free(self, device: str) -> None:
        await plugs.free(device, self._disk(device), self.directory)
        await super()._free(device)

    def _wanted(self) -> list[str]:
        """The ids of the devices that the spec has."""
        config = self.spec.config
        vifs = [vif_device(number) for number in vif_numbers(config.vif)]
        return [disk.vdev for disk in config.disk if disk.target] + vifs

    def _disk(self, vdev: str) -> Disk | None:
        return next((disk for disk in self.spec.config.disk if disk.vdev == vdev), None)

    @property
    def online(self) -> Collection[int]:
        # VCPU 0 runs first, and starts the others.
        return (0,) if self._events.fate.online is None else self._events.fate.online

    def _threaded(self) -> Collection[int]:
        return range(self.spec.most_vcpus)

    async def trace(self, only: Sequence[str]) -> AsyncGenerator[bytes, None]:
        return await follow(self, only)

    async def _order(self, what: str, command: str, **arguments: object) -> None:
        """A command that only makes sense while the guest lives."""
        self._refuse_stopped(what)
        await self._execute(command, arguments)

    def _refuse_stopped(self, what: str) -> None:
        if self.stopped is not None:
            raise Conflict(f"cannot {what} '{self.spec.config.name}': its guest has stopped")

    async def _execute(
        self,
        command: str,
        arguments: Mapping[str, object],
        fds: Sequence[int] = (),
        *,
        timeout_s: float | None = _ANSWER_S,
    ) -> Any:
        line = msgspec.json.encode({"execute": command, "arguments": arguments}) + b"\n"
        try:
            async with asyncio.timeout(timeout_s):
                answer = msgspec.json.decode(await self._ask(line, fds), type=dict[str, Any])
        except (OSError, msgspec.DecodeError, TimeoutError) as error:
            if not self.alive:
                raise Conflict(f"'{self.spec.config.name}' is gone") from error
            raise EngineError(f"the hypervisor of '{self.spec.config.name}' does not answer: {error}") from error
        if "error" in answer:
            told = answer["error"]
            kind = _REFUSALS.get(told.get("code", ""), EngineError)
            raise kind(f"'{self.spec.config.name}': {told.get('desc', 'refused')}")
        return answer.get("return")

    async def _ask(self, line: bytes, fds: Sequence[int]) -> bytes:
        """Send a line, with descriptors beside it, and wait for the answer's."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.setblocking(False)
            await asyncio.get_running_loop().sock_connect(connection, str(self.directory / "control.sock"))
            # A fresh connection takes a line at once, so that no descriptor can be left behind half-sent.
            sent = socket.send_fds(connection, [line], fds) if fds else 0
            reader, writer = await asyncio.open_unix_connection(sock=connection)
        except BaseException:
            connection.close()
            raise
        try:
            writer.write(line[sent:])
            return await reader.readline()
        finally:
            writer.close()


class XenEngine:
    """Starts and adopts hypervisor processes. ``state`` is where the KVM probe keeps its verdict."""

    name = "xen"

    def __init__(self, state: Path, inotify: Inotify) -> None:
        self._state = state
        self._inotify = inotify

    def info(self) -> EngineInfo:
        verdict = kvm_verdict(self._state)
        reason = "on KVM" if verdict.usable else f"KVM can't be used: {verdict.reason}"
        return EngineInfo(name=self.name, available=verdict.usable, reason=reason, version=__version__)

    def accelerator(self, config: DomainConfig) -> str:
        return "kvm"

    def check(self, config: DomainConfig) -> list[str]:
        if config.type is not DomainType.PVH:
            raise Unsupported(f"the Xen engine runs pvh domains, '{config.name}' is {config.type.value}")
        if config.kernel is None and config.image is None:
            raise ConfigError("a pvh domain needs a kernel", key="kernel", hint="Say kernel=… or image=…, or type=hvm.")
        if max(config.vcpus, config.maxvcpus or 0) > _MOST_VCPUS:
            raise Unsupported(f"the Xen engine runs at most {_MOST_VCPUS} VCPUs, '{config.name}' asks for more")
        if config.p9:
            raise Unsupported(
                f"the Xen engine has no 9pfs back end, and '{config.name}' has p9",
                hint="QEMU can share folders: engine=qemu, or leave engine out.",
            )
        if config.gdb:
            raise Unsupported(
                f"the Xen engine has no stub for gdb, and '{config.name}' has gdb=1",
                hint="QEMU has one: engine=qemu, or leave engine out.",
            )
        check_hugepages(config)
        if any(disk.format is DiskFormat.QCOW2 or Path(disk.target).suffix in _QCOW2 for disk in config.disk):
            find_binary()
        return [*check_disks(config), *check_networks(config)]

    def lay_out(self, spec: DomainSpec) -> DomainSpec:
        return spec

    async def start(
        self,
        spec: DomainSpec,
        directory: Path,
        *,
        paused: bool,
        state: int | None = None,
        late_disks: bool = False,
        template: Template | None = None,
        empty_disks: Sequence[str] = (),
    ) -> RunningDomain:
        if (state is not None or template is not None) and spec.machine != _MACHINE:
            raise Unsupported(
                f"'{spec.config.name}' was saved in the form {spec.machine}, this pyxen reads {_MACHINE}",
                hint="Restore it with the version of pyxen that saved it.",
            )
        spec = msgspec.structs.replace(spec, cmdline=_with_vcpus(_with_console(spec.cmdline), spec))
        late = [disk.vdev for disk in spec.config.disk if disk.target and late_disks]
        info = StartedInfo(accelerator="kvm", late=late)
        try:
            # Written again: it is what the process reads, and the command line has changed.
            (directory / "domain.json").write_bytes(msgspec.json.encode(spec))
            (directory / "stderr").touch(mode=0o600)
            if not late and (disks := served(spec.config.disk)):
                await serve(disks, directory, spec.uid)
            if template is not None and not template.full:
                assert state is not None
                await _fill(template, spec, directory, state)
            pid = await asyncio.to_thread(_launch, spec, directory, info, paused=paused, state=state, template=template)
        except OSError as error:
            raise EngineError(f"cannot start the hypervisor for '{spec.config.name}': {error}") from error
        domain = XenDomain(spec, directory, pid, self._inotify, info)
        # A state comes as fast as it is written, perhaps by a guest that still runs elsewhere.
        await domain.settle(_READY_S if state is None or template is not None else None, paused=paused)
        domain.note_jail()
        save_info(directory, info)
        return domain

    async def adopt(self, spec: DomainSpec, directory: Path) -> RunningDomain | None:
        domain = XenDomain.adopt(spec, directory, self._inotify)
        if domain is not None:
            await domain.learn_devices()
        return domain

    def reap(self, directory: Path) -> None:
        end_all(directory)
        reap(directory)


def _moving(answer: dict[str, int]) -> Moving:
    return Moving(answer["sent"], answer["remaining"], answer["round"])


async def _fill(template: Template, spec: DomainSpec, directory: Path, state: int) -> None:
    """Have a process of its own take the state apart. Raises EngineError and OSError."""
    with Descriptors() as descriptors:
        given = {
            "--state": state,
            "--memory": descriptors.take(template.memory()),
            "--devices": descriptors.take(template.devices()),
        }
        words = [word for name, fd in given.items() for word in (name, str(fd))]
        words += [] if spec.uid is None else ["--uid", str(spec.uid)]
        filling = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "pyxen.hypervisor.fill", marker(directory), *words),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            pass_fds=list(given.values()),
        )
        try:
            _, said = await filling.communicate()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                filling.kill()
            await filling.wait()
            raise
    if filling.returncode:
        why = said.decode(errors="replace").strip() or f"status {filling.returncode}"
        raise EngineError(f"no template can be made of the state of '{spec.config.name}': {why}")
    await asyncio.to_thread(template.seal)


def _launch(
    spec: DomainSpec,
    directory: Path,
    info: StartedInfo,
    *,
    paused: bool,
    state: int | None,
    template: Template | None,
) -> int:
    """Start the process, with its networks; its id. Raises PyxenError and OSError."""
    words: list[str] = ["--paused"] if paused else []
    sockets = directory / DISKS_SOCKET
    if info.late:
        words.append("--late-disks")
    else:
        words += [word for disk in served(spec.config.disk) for word in ("--nbd", f"{disk.vdev}={sockets}")]
    with Descriptors() as descriptors:
        given = []
        if template is not None:
            given = [
                ("--state", descriptors.take(template.devices())),
                ("--template", descriptors.take(template.memory())),
            ]
        elif state is not None:
            given = [("--state", state)]
        words += [word for name, fd in given for word in (name, str(fd))]
        words += open_networks(spec, directory, descriptors, info)
        words += ["--agent", str(descriptors.take(listen(directory, AGENT)))]
        pid = spawn(
            # The marker is not for the hypervisor: it is what the process is found by.
            [sys.executable, "-m", "pyxen.hypervisor", f"{directory}/monitor", marker(directory), *words],
            stderr=directory / "stderr",
            pass_fds={*descriptors.fds, *(fd for _, fd in given)},
            nodes=spec.nodes,
        )
    write_pid(directory, pid)
    if (group := cgroup.enter(spec.uuid, pid)) is not None:
        info.jail = cgroup.limit(group, _limits(spec))
    save_info(directory, info)
    return pid


def _limits(spec: DomainSpec) -> cgroup.Limits:
    """Python, the tables of a guest's memory, in the kernel too, helpers; a thread for each VCPU and disk's queue."""
    mib = max(spec.config.memory, spec.config.maxmem or 0)
    return cgroup.Limits(mib + mib // 64 + 512, spec.most_vcpus + 256)


def _with_vcpus(cmdline: str, spec: DomainSpec) -> str:
    """The command line with the number of VCPUs to start, where the guest may get more of them later.

    Without it Linux starts all, and takes some offline again when it has read xenstore.
    """
    if spec.most_vcpus == spec.config.vcpus or any(word.startswith("maxcpus=") for word in cmdline.split()):
        return cmdline
    return f"{cmdline} maxcpus={spec.config.vcpus}".strip()


def _with_console(cmdline: str) -> str:
    """The command line with the console that the domain's log comes from, unless it names one."""
    if any(word.startswith("console=") for word in cmdline.split()):
        return cmdline
    return f"console=hvc0 {cmdline}".strip()

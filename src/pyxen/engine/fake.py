"""An engine without guests, for tests: its domains are real processes with real files, so that everything above an
engine can be tried in milliseconds, adoption after xend's death included.

A domain's process prints ``fake domain NAME`` and echoes what is typed. A line on ``console.in`` or in the FIFO
``fake.ctl`` makes it act: ``poweroff``, ``reboot``, ``reset``, ``crash``, ``shutdown`` (its power button), ``exit``
(dies without a word), ``pause``, ``unpause``, ``suspend``, ``resume``, ``vcpus N``, ``memory MIB``, ``sysrq KEY``,
``nmi``, ``unplug ID``, ``take ID``, ``port ID open``. Words in the command line change its manners:
``fake.silent`` prints nothing,
``fake.deaf`` ignores the power button, ``fake.fail`` dies before it is ready, ``fake.stubborn`` ignores SIGTERM,
``fake.dumpless`` dumps no core, ``fake.groupless`` has no cgroup, ``fake.clinging`` lets go of no device, ``fake.full``
takes none.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from pyxen.api import EngineInfo, Trigger
from pyxen.config.model import Disk, DomainConfig, Vif, usb_device, usb_numbers
from pyxen.engine.cgroup import Shares
from pyxen.engine.contract import DomainSpec, Pluggable, RunningDomain, StartedInfo
from pyxen.engine.domain import ProcessDomain, save_info, write_pid
from pyxen.engine.inotify import Inotify
from pyxen.engine.process import kill_all, marker, spawn
from pyxen.engine.qemu.slots import laid_out
from pyxen.engine.template import Template
from pyxen.errors import Conflict, EngineError, Unsupported

_READY_S = 20.0
_STATE = b"the state of a stand-in"

_SCRIPT = r"""
import json, os, select, signal, sys, time
directory, name, paused, manners = sys.argv[2], sys.argv[3], sys.argv[4] == "paused", sys.argv[5].split()
if "fake.fail" in manners:
    sys.exit("fake: no such machine")
events = os.open(directory + "/events", os.O_WRONLY | os.O_APPEND)
console = os.open(directory + "/console.log", os.O_WRONLY | os.O_APPEND)
inputs = [os.open(directory + "/" + file, os.O_RDWR) for file in ("console.in", "fake.ctl")]
def tell(message):
    os.write(events, json.dumps(message).encode() + b"\n")
def event(kind, **data):
    now = time.time()
    tell({"timestamp": {"seconds": int(now), "microseconds": int(now % 1 * 1e6)}, "event": kind, "data": data})
def shutdown(reason, guest=True):
    event("SHUTDOWN", guest=guest, reason=reason)
    if guest:
        event("STOP")
def terminated(number, frame):
    if "fake.stubborn" not in manners:
        shutdown("host-signal", guest=False)
        os._exit(0)
def act(word):
    if word in ("poweroff", "shutdown") and not (word == "shutdown" and "fake.deaf" in manners):
        shutdown("guest-shutdown")
    elif word == "reboot":
        shutdown("guest-reset")
    elif word == "crash":
        event("GUEST_PANICKED", action="pause")
    elif word == "exit":
        sys.exit("fake: told to exit")
    elif word == "reset":
        shutdown("host-qmp-system-reset", guest=False)
    elif word.startswith("vcpus "):
        event("VCPUS_CHANGED", online=list(range(int(word[6:]))))
    elif word.startswith("memory "):
        event("BALLOON_CHANGE", actual=int(word[7:]) << 20)
    elif word.startswith("sysrq "):
        os.write(console, b"sysrq: " + word[6:].encode() + b"\r\n")
        if word == "sysrq c":
            event("GUEST_PANICKED", action="pause")
    elif word.startswith("nmi"):
        os.write(console, b"NMI" + word[3:].encode() + b"\r\n")
    elif word.startswith("take ") or word.startswith("unplug ") and "fake.clinging" not in manners:
        device = word.split()[1]
        event("DEVICE_DELETED", device=device, path="/machine/peripheral/" + device)
    elif word.startswith("port "):
        event("VSERPORT_CHANGE", id=word.split()[1], open=word.split()[2] == "open")
    elif word == "pause":
        event("STOP")
    elif word == "unpause":
        event("RESUME")
    elif word == "suspend":
        event("SUSPEND")
    elif word == "resume":
        event("WAKEUP")
signal.signal(signal.SIGTERM, terminated)
tell({"QMP": {"version": {"qemu": {"major": 0, "minor": 0, "micro": 0}}}})
tell({"return": {}, "id": "ready"})
if not paused:
    event("RESUME")
if "fake.silent" not in manners:
    os.write(console, b"fake domain " + name.encode() + b"\r\n")
rest = {fd: b"" for fd in inputs}
while True:
    for fd in select.select(inputs, [], [])[0]:
        data = os.read(fd, 65536)
        if fd == inputs[0]:
            os.write(console, data.replace(b"\n", b"\r\n"))
        *lines, rest[fd] = (rest[fd] + data.replace(b"\r", b"\n")).split(b"\n")
        for line in lines:
            act(line.decode(errors="replace").strip())
"""


class FakeDomain(ProcessDomain):
    """A process that behaves like a domain's."""

    shares = Shares()
    io_weight = 0
    """What it was given last."""

    def control(self, word: str) -> None:
        """Make it act; see the module. Does not wait."""
        fd = os.open(self.directory / "fake.ctl", os.O_WRONLY | os.O_NONBLOCK)
        try:
            os.write(fd, f"{word}\n".encode())
        finally:
            os.close(fd)

    async def pause(self) -> None:
        self._must_run("pause")
        self.control("pause")
        await self.wait_paused(True)

    async def unpause(self) -> None:
        self._must_run("unpause")
        self.control("unpause")
        await self.wait_paused(False)

    async def suspend(self) -> None:
        self._must_run("suspend")
        self.control("suspend")
        await self.wait_suspended(True, 30)

    async def resume(self) -> None:
        self._must_run("resume")
        self.control("resume")
        await self.wait_suspended(False, 30)

    async def request_shutdown(self, reason: str) -> None:
        self._must_run("shut down")
        self.control("shutdown")

    async def set_vcpus(self, count: int) -> None:
        self._must_run("change the VCPUs of")
        self.control(f"vcpus {count}")

    async def set_memory(self, mib: int) -> None:
        self._must_run("change the memory of")
        self.control(f"memory {mib}")

    async def set_max_memory(self, mib: int) -> None:
        self._must_run("change the memory of")

    async def sysrq(self, key: str) -> None:
        self._must_run("press SysRq in")
        self.control(f"sysrq {key}")

    async def trigger(self, trigger: Trigger, vcpu: int | None) -> None:
        self._must_run(f"trigger {trigger} in")
        match trigger:
            case Trigger.NMI:
                self.control("nmi" if vcpu is None else f"nmi {vcpu}")
            case Trigger.RESET:
                self.control("reset")
            case Trigger.POWER:
                self.control("shutdown")
            case _:
                raise Unsupported(f"cannot trigger {trigger} in '{self.spec.config.name}': it is a stand-in")

    async def dump_core(self, file: int, *, live: bool = False) -> None:
        if "fake.dumpless" in self.spec.cmdline.split():
            raise Unsupported(f"'{self.spec.config.name}' dumps no core")
        await asyncio.to_thread(os.write, file, b"\x7fELF" + b"\0" * 60)

    def _threaded(self) -> Collection[int]:
        return ()

    def share(self, shares: Shares) -> None:
        if "fake.groupless" in self.spec.cmdline.split():
            raise Unsupported(f"xend can't weigh or cap '{self.spec.config.name}' here")
        self.shares = shares

    def weigh_io(self, weight: int) -> None:
        if "fake.groupless" in self.spec.cmdline.split():
            raise Unsupported(f"xend can't weigh the disks of '{self.spec.config.name}' here")
        self.io_weight = weight

    async def plug(self, device: Pluggable, spec: DomainSpec) -> None:
        self._must_run("plug a device into")
        if "fake.full" in self.spec.cmdline.split():
            raise EngineError(f"'{self.spec.config.name}' takes no device")
        self.spec = spec

    async def unplug(self, device: str, *, force: bool = False) -> None:
        self._must_run("unplug a device of")
        self.control(f"{'take' if force else 'unplug'} {device}")

    async def change_disc(self, disk: Disk, spec: DomainSpec) -> None:
        self._must_run("change a disc of")
        self.spec = spec

    async def limit(self, device: Disk | Vif, spec: DomainSpec) -> None:
        self._must_run("limit a device of")
        self.spec = spec

    async def resize_disk(self, vdev: str, size: int) -> None:
        self._must_run("resize a disk of")

    def _look(self) -> None:
        super()._look()
        for device in self._events.fate.unplugged:
            others = [disk.vdev for disk in self.spec.config.disk]
            others += map(usb_device, usb_numbers(self.spec.config.usbdev))
            if device in self.spec.slots or device in others:
                self._has_left(device)
        self._events.fate.unplugged.clear()

    async def machine(self) -> str:
        return "fake-1"

    async def save_state(self, stream: int) -> None:
        if "fake.dumpless" in self.spec.cmdline.split():
            raise EngineError(f"'{self.spec.config.name}' has no state")
        await asyncio.to_thread(os.write, stream, _STATE)

    def _must_run(self, action: str) -> None:
        if self.stopped is not None or not self.alive:
            raise Conflict(f"cannot {action} '{self.spec.config.name}': its guest has stopped")


class FakeEngine:
    """Starts processes in place of guests. Refuses nothing."""

    name = "qemu"
    """It stands in for this one."""

    def __init__(self, state: Path | None = None, inotify: Inotify | None = None) -> None:
        self._inotify = inotify

    def info(self) -> EngineInfo:
        return EngineInfo(name=self.name, available=True, reason="a stand-in for tests", version="0")

    def accelerator(self, config: DomainConfig) -> str:
        return "fake"

    def check(self, config: DomainConfig) -> list[str]:
        return []

    def lay_out(self, spec: DomainSpec) -> DomainSpec:
        return laid_out(spec)

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
        if template is not None and not template.full:
            assert state is not None
            await asyncio.to_thread(_fill, template, state)
            state = None
        if state is not None or template is not None:
            found = await asyncio.to_thread(_read_all, state if state is not None else template)
            if found != _STATE:
                raise EngineError(f"this is no stand-in's state: {found[:40]!r}")
        os.mkfifo(directory / "fake.ctl", 0o600)
        pid = spawn(
            [
                sys.executable,
                *("-I", "-S", "-c", _SCRIPT, marker(directory), str(directory), spec.config.name),
                "paused" if paused else "running",
                spec.cmdline,
            ],
            stderr=directory / "stderr",
        )
        write_pid(directory, pid)
        info = StartedInfo(
            accelerator="fake",
            forwards=[
                f"{each.protocol} {each.address}:{each.host} -> {each.guest}"
                for vif in spec.config.vif
                for each in vif.forward
            ],
        )
        save_info(directory, info)
        domain = FakeDomain(spec, directory, pid, self._watcher(), info)
        await domain.settle(_READY_S, paused=paused)
        return domain

    async def adopt(self, spec: DomainSpec, directory: Path) -> RunningDomain | None:
        return FakeDomain.adopt(spec, directory, self._watcher())

    def reap(self, directory: Path) -> None:
        kill_all(directory)

    def _watcher(self) -> Inotify:
        if self._inotify is None:
            self._inotify = Inotify()
        return self._inotify


def _read_all(source: int | Template | None) -> bytes:
    assert source is not None
    if isinstance(source, Template):
        with os.fdopen(source.devices(), "rb") as file:
            return file.read()
    with open(source, "rb", closefd=False) as file:
        return file.read()


def _fill(template: Template, state: int) -> None:
    with os.fdopen(template.devices(), "wb") as file:
        file.write(_read_all(state))
    template.seal()

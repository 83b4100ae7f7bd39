"""One domain's process: ``python -m pyxen.hypervisor DIRECTORY/monitor``; see ``--help`` for what else it takes.

DIRECTORY is as engine.contract says; the argument's last part names no file, it tells this process from others. The
process stays when its guest has stopped, for whoever wants its memory, and ends when told to: by SIGTERM or "quit".
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType

import msgspec

from pyxen.abi.sched import SHUTDOWN_CRASH, SHUTDOWN_SUSPEND
from pyxen.config.model import vif_numbers
from pyxen.errors import Conflict, InvalidRequest
from pyxen.hypervisor import debug_keys
from pyxen.hypervisor.agent import AgentSocket
from pyxen.hypervisor.builder import build, layout
from pyxen.hypervisor.changes import Changes
from pyxen.hypervisor.control import Control
from pyxen.hypervisor.devices import Devices, Sources
from pyxen.hypervisor.domain import Domain
from pyxen.hypervisor.events import Events
from pyxen.hypervisor.hotplug import Hotplug
from pyxen.hypervisor.jail import Jail, Report, mode
from pyxen.hypervisor.kvm_machine import KvmMachine, Moment
from pyxen.hypervisor.loop import Loop
from pyxen.hypervisor.memory import PAGE_SHIFT, PAGE_SIZE
from pyxen.hypervisor.orders import Orders
from pyxen.hypervisor.spec import DomainSpec
from pyxen.hypervisor.spec import load as read_spec
from pyxen.hypervisor.state import load
from pyxen.hypervisor.terminal import Log, Terminal
from pyxen.hypervisor.toolstack import Toolstack
from pyxen.hypervisor.trace import REASONS, Tracing
from pyxen.xenstore.listener import Listener
from pyxen.xenstore.local import Local
from pyxen.xenstore.ring import Ring
from pyxen.xenstore.store import Store

_HUGE_BITS = {"2m": 21, "1g": 30}
_ORDERS = ("poweroff", "reboot", "halt", "suspend")


class DomainProcess:
    """A domain, its machine, its files. Everything but ``_guest_stopped`` and ``_failed`` is for the main thread."""

    def __init__(
        self,
        directory: Path,
        spec: DomainSpec,
        sources: Sources,
        state: int | None = None,
        template: int | None = None,
    ) -> None:
        """Make everything, run nothing yet. With ``state``, the guest will be what is read there, its RAM (with
        ``template``) a copy of what is there already. Raises PyxenError.
        """
        self.spec = spec
        self._state = state
        self._template = template
        self._directory = directory
        self._jail = Report()
        self.stop_reason: str | None = None
        self._paused = True
        self._suspended = False
        self._suspending = False
        self._agent: AgentSocket | None = None
        self._words: Callable[[str], None] = lambda text: print(text, flush=True)  # noqa: T201  the file "stderr"
        self.loop = Loop()
        self._log = Log(directory / "console.log")
        self._events = Events(directory / "events")
        self.machine, self.domain = self._build()
        self._changes = Changes(
            self.loop,
            self._events,
            online=self.machine.vcpus_up,
            pages=lambda: self.domain.reservation.current,
        )
        self.domain.reservation.changed = self._changes.memory
        self.domain.evtchn.vcpu_left = self.machine.vcpu_left
        console, store = self.domain.set_up_special_pages(console_gfn=layout.CONSOLE_GFN, store_gfn=layout.XENSTORE_GFN)
        self._terminal = Terminal(self.domain, console, self._log, directory / "console.in", self.loop)
        self._open_store(directory, store)
        self.toolstack = Toolstack(self.local, spec, store_port=store, console_port=console)
        self._devices = Devices(self.local, self.domain, self.loop.call_soon, self._events.device_deleted)
        self._orders = Orders(spec, self.domain, self.machine, self.toolstack, self, self._devices.settle)
        self._hotplug = Hotplug(self._devices, self._refuse_change)
        self._attach(sources)
        self._tracing = Tracing(self.machine, self.domain, self._ring.connection, self.loop)
        self._control = Control(directory / "control.sock", self.loop, self._commands(), {"trace": self._tracing.open})

    @property
    def name(self) -> str:
        return self.spec.config.name

    def _attach(self, sources: Sources) -> None:
        """Give the guest what its description says."""
        config = self.spec.config
        for disk in config.disk:
            if disk.target and not sources.late_disks:
                self._devices.attach_disk(disk, sources.disk(disk))
        for number, vif in zip(vif_numbers(config.vif), config.vif, strict=True):
            self._devices.attach_vif(number, vif, sources.link(number))
        if sources.agent is not None:
            self._agent = AgentSocket(sources.agent, self.loop)
            self._devices.attach_agent(self._agent)

    def _build(self) -> tuple[KvmMachine, Domain]:
        spec = self.spec
        vcpus = spec.most_vcpus
        memory = build.allocate(
            spec.most_memory * layout.MIB,
            huge_bits=_HUGE_BITS.get(spec.config.hugepages or ""),
            shared=spec.config.memory_sharing,
            template=self._template,
        )
        machine = KvmMachine(
            memory,
            vcpus,
            self.loop,
            domid=spec.domid,
            console=self._log.write,
            stopped=self._guest_stopped,
            failed=self._failed,
            vcpus_changed=lambda: self._changes.vcpus(),
        )
        domain = Domain(
            memory,
            machine,
            domid=spec.domid,
            vcpus=vcpus,
            memory_map=build.memory_map(memory),
            uuid=uuid.UUID(spec.uuid).bytes,
        )
        machine.attach(domain)
        if self._state is None:
            ramdisk = Path(spec.ramdisk) if spec.ramdisk else None
            machine.boot(build.build(memory, Path(spec.kernel), ramdisk, spec.cmdline, vcpus))
        return machine, domain

    def _load(self, state: int) -> None:
        """Make the guest what ``state`` holds. In the jail, as nobody knows who has written it."""
        try:
            xen, cpus = load.read(state, self.domain, self.machine.check_tsc)
            load.apply(xen, self.domain)
            self.machine.load(Moment(xen.system_time, xen.tsc_khz), cpus)
        finally:
            os.close(state)

    def _open_store(self, directory: Path, port: int) -> None:
        store = Store()
        self.local = Local(store, wake=self.loop.coalesced(lambda: self.local.settle()))
        page = self.domain.memory.keep(self.domain.store_gfn << PAGE_SHIFT, PAGE_SIZE)
        poll = self.loop.coalesced(lambda: self._ring.poll())
        self._ring = Ring(store, self.spec.domid, page, lambda: bound.notify(), wake=poll)
        bound = self.domain.evtchn.bind_backend(port, poll)
        self._listener = Listener(directory / "xenstore.sock", store, self.loop.selector)
        self.loop.after_each_round(self._listener.flush)

    def run(self, jail: Jail, *, paused: bool) -> None:
        """Enter the jail; run the guest and the main loop, until ``quit``. Raises PyxenError."""
        jail.enter(self._directory, uid=self.spec.uid, vcpus=len(self.domain.vcpus))
        self._jail = jail.report
        if self._state is not None:
            self._load(self._state)
        self.machine.start(paused=paused)
        self._events.ready(self._jail)
        self._changes.vcpus()
        self._changes.memory()
        if not paused:
            self._paused = False
            self._events.resumed()
        self.loop.run()

    def close(self) -> None:
        """End the guest; take its last words."""
        self._tracing.close()
        self.machine.close()
        self._devices.close()
        self._terminal.close()
        self._listener.close()
        self._control.close()
        self._changes.close()
        self.loop.close()
        self._events.close()
        self._log.close()

    def quit(self) -> None:
        """End this process soon."""
        if self.stop_reason is None:
            self.stop_reason = "destroyed"
            self._events.destroyed()
            self._tracing.end("destroyed")
        self.loop.stop()

    @property
    def paused(self) -> bool:
        return self._paused

    @property
    def suspended(self) -> bool:
        """The guest has suspended itself."""
        return self._suspended

    def pause(self) -> None:
        self._refuse_stopped("pause")
        self._orders.refuse_busy("pause")
        if not self._paused:
            self.machine.pause()
            self._paused = True
            self._events.paused()

    def unpause(self) -> None:
        self._refuse_stopped("unpause")
        self._orders.refuse_busy("unpause")
        if self._paused:
            self._paused = False
            self.domain.stood_still()
            self.machine.unpause()
            self._events.resumed()

    def resume(self) -> None:
        """Let the guest go on after it was asked to suspend, and has."""
        self._refuse_stopped("resume")
        self._orders.refuse_busy("resume")
        if not self._suspended:
            raise Conflict(f"'{self.name}' is not suspended")
        self._suspended = False
        self._silence_agent(False)
        self.domain.resume()
        self.machine.resume()
        self._events.woken()

    def shutdown(self, reason: str = "poweroff") -> None:
        """Ask the guest to poweroff, reboot, halt or suspend."""
        self._refuse_stopped("shut down")
        if self._suspended:
            raise Conflict(f"'{self.name}' is suspended")
        if reason not in _ORDERS:
            raise InvalidRequest(f"a guest can't be asked to {reason!r}", hint=f"Use one of {', '.join(_ORDERS)}.")
        self._suspending = reason == "suspend"
        self._silence_agent(self._suspending)
        self.toolstack.ask(reason)

    def withdraw(self) -> dict[str, object]:
        """Ask the guest no longer to suspend itself. ``expected``: it has heard it, and is about to."""
        if self._suspending and self.toolstack.withdraw("suspend"):
            self._suspending = False
        self._silence_agent(False)
        return {"expected": self._suspending}

    def _silence_agent(self, on: bool) -> None:
        if self._agent is not None:
            self._agent.silence(on)

    def rename(self, name: str) -> None:
        """Be called so from now on."""
        self.spec = msgspec.structs.replace(self.spec, config=msgspec.structs.replace(self.spec.config, name=name))
        self.toolstack.rename(name)

    def status(self) -> dict[str, object]:
        return {
            "paused": self._paused,
            "suspended": self._suspended,
            "stopped": self.stop_reason,
            "vcpus": sorted(self.machine.vcpus_up()),
            "jail": self._jail,
        }

    def crash(self) -> None:
        """Stop the guest as if it had crashed."""
        self._refuse_stopped("crash")
        with self.domain.lock:
            self.domain.stop(SHUTDOWN_CRASH)

    def _commands(self) -> Mapping[str, Callable[..., object]]:
        return {
            "pause": self.pause,
            "unpause": self.unpause,
            "shutdown": self.shutdown,
            "withdraw": self.withdraw,
            "resume": self.resume,
            "status": self.status,
            "rename": self.rename,
            **self._orders.commands(),
            **self._hotplug.commands(),
            "debug-key": lambda key: debug_keys.press(self.domain, key),
            "crash": self.crash,
            "quit": self.quit,
        }

    def _refuse_change(self, what: str) -> None:
        self._refuse_stopped(what)
        self._orders.refuse_busy(what)

    def _refuse_stopped(self, what: str) -> None:
        if self.stop_reason is not None:
            raise Conflict(f"cannot {what} '{self.name}': its guest has stopped")

    def _guest_stopped(self, reason: int) -> None:
        if reason == SHUTDOWN_SUSPEND:
            self.loop.call_soon(self._guest_suspended)
            return
        self._end(str(reason), lambda: self._events.guest_stopped(reason), REASONS.get(reason, "crash"))

    def _guest_suspended(self) -> None:
        if self.stop_reason is None:
            self._suspended = True
            self._suspending = False
            self._events.suspended()

    def _failed(self, words: str) -> None:
        self._words(words)
        self._end("failed", self._events.failed, "failed")

    def _end(self, reason: str, tell: Callable[[], None], word: str) -> None:
        """In any thread; the first one counts."""

        def note() -> None:
            if self.stop_reason is None:
                self.stop_reason = reason
                tell()
                self._tracing.end(word)

        self.loop.call_soon(note)


def main(argv: list[str]) -> None:
    """The process, from its start to its end. Raises PyxenError."""
    options = _parser().parse_args(argv)
    directory = options.monitor.parent
    os.umask(0o077)
    sources = Sources(
        nbd={vdev: Path(path) for vdev, path in options.nbd},
        taps={int(number): int(fd) for number, fd in options.tap},
        streams={int(number): int(fd) for number, fd in options.stream},
        agent=options.agent,
        late_disks=options.late_disks,
    )
    given = [fd for fd in (options.state, options.template) if fd is not None]
    jail = Jail(mode(), keep=[*sources.fds, *given])
    spec = read_spec(directory / "domain.json")
    process = DomainProcess(directory, spec, sources, options.state, options.template)
    if options.template is not None:
        os.close(options.template)  # it is mapped

    def quit_soon(number: int, frame: FrameType | None) -> None:
        process.loop.call_soon(process.quit)

    signal.signal(signal.SIGTERM, quit_soon)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.closing(process):
        process.run(jail, paused=options.paused)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pyxen.hypervisor", description="One domain's process.")
    parser.add_argument("monitor", type=Path, help="DIRECTORY/monitor: the domain's folder, and a name for no file")
    parser.add_argument("marker", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("--paused", action="store_true", help="wait for the order to unpause")
    parser.add_argument("--agent", type=int, metavar="FD", help="a socket that listens for whoever wants the agent")
    parser.add_argument("--state", type=int, metavar="FD", help="begin with the state that is read there")
    parser.add_argument("--late-disks", action="store_true", help="all disks come by orders")
    parser.add_argument("--template", type=int, metavar="FD", help="with RAM that is a copy of what is there")

    def pairs(option: str, metavar: str, text: str) -> None:
        parser.add_argument(option, type=_pair, action="append", default=[], metavar=metavar, help=text)

    pairs("--nbd", "VDEV=SOCKET", "a disk is served there")
    pairs("--tap", "NUMBER=FD", "a vif's tap device")
    pairs("--stream", "NUMBER=FD", "a vif's stream of frames")
    return parser


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form KEY=VALUE")
    return key, value

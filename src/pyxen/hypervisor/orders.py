"""What may be asked of a domain besides pausing and shutting down: VCPUs, memory, keys, triggers, cores, its state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Protocol

from pyxen.abi.sched import SHUTDOWN_REBOOT
from pyxen.errors import Conflict, InvalidRequest, Unsupported
from pyxen.hypervisor import core
from pyxen.hypervisor.builder.layout import MIB
from pyxen.hypervisor.control import Later
from pyxen.hypervisor.domain import Domain
from pyxen.hypervisor.kvm_machine import KvmMachine
from pyxen.hypervisor.memory import PAGE_SIZE
from pyxen.hypervisor.spec import DomainSpec
from pyxen.hypervisor.state_orders import StateOrders
from pyxen.hypervisor.toolstack import Toolstack

_NO_SUCH_TRIGGER: Final = {
    "init": "a VCPU's INIT is for other VCPUs to send",
    "sleep": "a PVH domain has no sleep button",
    "s3resume": "a PVH domain can't sleep in S3",
}


class Lifeline(Protocol):
    """The process, as far as orders must know it."""

    @property
    def name(self) -> str: ...

    @property
    def paused(self) -> bool: ...

    @property
    def stop_reason(self) -> str | None: ...

    @property
    def suspended(self) -> bool: ...

    def pause(self) -> None: ...

    def unpause(self) -> None: ...


class Orders:
    """Carries them out, on the main loop's thread."""

    def __init__(
        self,
        spec: DomainSpec,
        domain: Domain,
        machine: KvmMachine,
        toolstack: Toolstack,
        process: Lifeline,
        settle: Callable[[], None],
    ) -> None:
        """``settle`` has back ends finish what the guest has asked for; in whatever thread."""
        self._spec = spec
        self._domain = domain
        self._machine = machine
        self._toolstack = toolstack
        self._process = process
        self._busy = ""
        self._state = StateOrders(domain, machine, process, settle)

    def commands(self) -> Mapping[str, Callable[..., object]]:
        return {
            "set-vcpus": self.set_vcpus,
            "set-memory": self.set_memory,
            "set-max-memory": self.set_max_memory,
            "sysrq": self.sysrq,
            "trigger": self.trigger,
            "dump-core": self.dump_core,
            **self._state.commands(),
        }

    def set_vcpus(self, count: int) -> None:
        """Tell the guest to use ``count`` VCPUs."""
        self._refuse_stopped("change")
        if not 1 <= count <= self._spec.most_vcpus:
            raise InvalidRequest(f"the domain can have 1 to {self._spec.most_vcpus} VCPUs, not {count}")
        self._toolstack.set_vcpus(count)

    def set_memory(self, mib: int) -> None:
        """Tell the guest to shrink or grow to ``mib`` MiB."""
        self._refuse_stopped("change")
        most = self._domain.reservation.maximum * PAGE_SIZE // MIB
        if not 1 <= mib <= most:
            raise InvalidRequest(f"the domain can have 1 to {most} MiB, not {mib}")
        self._toolstack.set_memory(mib)

    def set_max_memory(self, mib: int) -> None:
        """Let the guest have at most ``mib`` MiB; what it has above that it may keep."""
        self._refuse_stopped("change")
        if not 1 <= mib <= self._spec.most_memory:
            raise InvalidRequest(f"the domain was started for 1 to {self._spec.most_memory} MiB, not {mib}")
        with self._domain.lock:
            reservation = self._domain.reservation
            reservation.maximum = min(mib * MIB // PAGE_SIZE, reservation.size)

    def sysrq(self, key: str) -> None:
        """Press SysRq with ``key``."""
        self._refuse_stopped("press SysRq in")
        if len(key) != 1 or not "!" <= key <= "~":
            raise InvalidRequest(f"SysRq goes with one letter or digit, not {key!r}")
        self._toolstack.press(key)

    def trigger(self, trigger: str, vcpu: int | None = None) -> None:
        """nmi (to ``vcpu``, by default to all), reset, or power: what a PVH domain has for a power button."""
        self._refuse_stopped(f"trigger {trigger} in")
        if vcpu is not None and not 0 <= vcpu < len(self._domain.vcpus):
            raise InvalidRequest(f"the domain has VCPUs 0 to {len(self._domain.vcpus) - 1}, no {vcpu}")
        match trigger:
            case "nmi":
                targets = self._machine.vcpus_up() if vcpu is None else {vcpu}
                with self._domain.lock:
                    for target in targets:
                        self._machine.nmi(target)
            case "reset":
                with self._domain.lock:
                    self._domain.stop(SHUTDOWN_REBOOT)
            case "power":
                self._toolstack.ask("poweroff")
            case _:
                why = _NO_SUCH_TRIGGER.get(trigger, "there is no such trigger")
                raise Unsupported(f"cannot trigger {trigger}: {why}")

    def dump_core(self, fds: list[int], live: bool = False) -> Later:
        """Write a core into the one descriptor; the guest stands still meanwhile, unless ``live``."""
        self.refuse_busy("dump the core of")
        if len(fds) != 1:
            raise InvalidRequest(f"a core is written into one file, not {len(fds)}")
        (fd,) = fds
        stands = self._process.paused or self._process.stop_reason is not None
        if not stands:
            self._process.pause()
        states = self._machine.cpu_states()
        if live and not stands:
            self._process.unpause()
            stands = True
        self._busy = "its core is being dumped"

        def done() -> None:
            self._busy = ""
            if not stands and self._process.stop_reason is None:
                self._process.unpause()

        return Later(lambda: {"size": core.write(fd, self._domain.memory, states)}, done)

    def refuse_busy(self, what: str) -> None:
        """Raises Conflict while a core or a state is being written."""
        if busy := self._busy or self._state.busy:
            raise Conflict(f"cannot {what} '{self._process.name}': {busy}")

    def _refuse_stopped(self, what: str) -> None:
        if self._process.stop_reason is not None:
            raise Conflict(f"cannot {what} '{self._process.name}': its guest has stopped")

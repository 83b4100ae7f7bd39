"""One VCPU as Xen sees it: where its vcpu_info is, how it is told of events, what it waits for."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from pyxen.abi.event_channel import NR_VIRQS
from pyxen.abi.shared_info import UPCALL_PENDING
from pyxen.abi.vcpu import VcpuContext
from pyxen.hypervisor.areas import RunstateArea, TimeArea
from pyxen.hypervisor.atomic import SharedPage

if TYPE_CHECKING:
    from pyxen.hypervisor.domain import Domain

_POLL_SLICE_S = 0.02
"""A waiting VCPU looks up this often: interrupts that don't come through Xen (LAPIC IPIs) reach it in guest code only.
Guests expect spurious returns."""


class Vcpu:
    """A VCPU. Everything here is guarded by ``domain.lock``."""

    def __init__(self, domain: Domain, index: int, info: SharedPage, info_offset: int) -> None:
        self.domain = domain
        self.index = index
        self.info = info
        """The page that holds the vcpu_info, at ``info_offset``."""
        self.info_offset = info_offset
        self.info_gfn: int | None = None
        """Set once the guest has registered a place of its own."""
        self.upcall_vector = 0
        """HVMOP_set_evtchn_upcall_vector; 0: none."""
        self.virqs = [0] * NR_VIRQS
        """The port of each VIRQ, 0 if not bound."""
        self.context: VcpuContext | None = None
        """From VCPUOP_initialise, for the first VCPUOP_up."""
        self.initialised = index == 0
        self.runstate = RunstateArea()
        self.time_area = TimeArea()
        self.polling: frozenset[int] = frozenset()
        """The ports that SCHEDOP_poll waits for."""
        self._woken = threading.Condition(domain.lock)

    @property
    def upcall_pending(self) -> bool:
        return self.info.view[self.info_offset + UPCALL_PENDING] != 0

    def mark_events_pending(self) -> None:
        """Note in vcpu_info that there are events, and interrupt the VCPU if that is news."""
        if not self.info.exchange8(self.info_offset + UPCALL_PENDING, 1):
            self.interrupt()

    def interrupt(self) -> None:
        """Let the guest's event handler run on this VCPU, by the vector it chose."""
        if self.upcall_vector:
            self.domain.machine.upcall(self.index, self.upcall_vector)
        elif self.domain.callback_vector:
            self.domain.machine.inject(self.index, self.domain.callback_vector)
        self._woken.notify_all()

    def wake(self) -> None:
        """End ``wait``."""
        self._woken.notify_all()

    def wait(self, deadline_ns: int | None) -> None:
        """Sleep, without the lock, until an event or ``wake``, or (roughly) the deadline in system time."""
        seconds = _POLL_SLICE_S
        if deadline_ns is not None:
            seconds = min(seconds, (deadline_ns - self.domain.machine.now_ns()) / 1e9)
        if seconds > 0:
            self._woken.wait(seconds)

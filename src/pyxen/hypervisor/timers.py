"""The domain's timers, in the guest's system time: for each VCPU a singleshot and a periodic one, and two watchdogs.

The machine keeps one deadline for each VCPU; this decides which.
"""

from __future__ import annotations

from collections.abc import Callable

from pyxen.hypervisor.machine import Machine

WATCHDOGS = 2
_WATCHDOG_VCPU = 0


class Timers:
    """``fired(vcpu)`` is called when a VCPU's timer has run out, ``watchdog()`` when one has not been fed."""

    def __init__(
        self, machine: Machine, vcpus: int, fired: Callable[[int], None], watchdog: Callable[[], None]
    ) -> None:
        self._machine = machine
        self._fired = fired
        self._watchdog = watchdog
        self.singleshot: list[int | None] = [None] * vcpus
        self.periodic: list[int | None] = [None] * vcpus
        self.periods = [0] * vcpus
        self.watchdogs: list[int | None] = [None] * WATCHDOGS
        self._programmed: list[int | None] = [None] * vcpus

    def set_singleshot(self, vcpu: int, deadline_ns: int | None) -> None:
        """Fire once, soon if the deadline has passed; None: don't."""
        self.singleshot[vcpu] = deadline_ns
        self._program(vcpu)

    def set_periodic(self, vcpu: int, period_ns: int) -> None:
        """Fire every ``period_ns`` from now on; 0: don't."""
        self.periods[vcpu] = period_ns
        self.periodic[vcpu] = self._machine.now_ns() + period_ns if period_ns else None
        self._program(vcpu)

    def set_watchdog(self, index: int, deadline_ns: int | None) -> None:
        self.watchdogs[index] = deadline_ns
        self._program(_WATCHDOG_VCPU)

    def _program(self, vcpu: int) -> None:
        deadlines = [self.singleshot[vcpu], self.periodic[vcpu]]
        if vcpu == _WATCHDOG_VCPU:
            deadlines += self.watchdogs
        earliest = min((deadline for deadline in deadlines if deadline is not None), default=None)
        if earliest != self._programmed[vcpu]:
            self._programmed[vcpu] = earliest
            self._machine.set_timer(vcpu, earliest)

    def expired(self, vcpu: int) -> None:
        """The machine's deadline for ``vcpu`` has passed."""
        now = self._machine.now_ns()
        self._programmed[vcpu] = None
        singleshot, periodic = self.singleshot[vcpu], self.periodic[vcpu]
        fires = False
        if singleshot is not None and singleshot <= now:
            self.singleshot[vcpu] = None
            fires = True
        if periodic is not None and periodic <= now:
            # Ticks that were missed are not made up for.
            period = self.periods[vcpu]
            self.periodic[vcpu] = periodic + ((now - periodic) // period + 1) * period
            fires = True
        if fires:
            self._fired(vcpu)
        if vcpu == _WATCHDOG_VCPU and any(limit is not None and limit <= now for limit in self.watchdogs):
            self.watchdogs = [None] * WATCHDOGS
            self._watchdog()
        self._program(vcpu)

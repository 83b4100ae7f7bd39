"""What Xen's side of a domain asks of the machine under it.

``Domain`` knows the ABI; the machine knows KVM, time and memory slots. All calls come with ``domain.lock`` held, from a
VCPU's thread or from the main loop, and return at once. ``vcpu`` is always the VCPU's number in Xen (0, 1, …).

The other way round, the machine calls the domain:

    domain.hypercall(vcpu, nr, args, bits)   on a trapped hypercall, in that VCPU's thread
    domain.timer_expired(vcpu)               when the deadline of ``set_timer`` has passed
    domain.update_time(vcpu)                 after the TSC of a VCPU has been set (restore)
    domain.kick(vcpu)                        to end a wait inside SCHEDOP_poll or SCHEDOP_block early
    domain.check_upcall(vcpu)                after a VCPU came online, whose LAPIC may have dropped an upcall
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from pyxen.abi.vcpu import VcpuContext


class PvClock(NamedTuple):
    """How a guest makes nanoseconds of its TSC: ``system_time + ((tsc - tsc_timestamp) << shift) * mul >> 32``.

    The numbers of struct pvclock_vcpu_time_info (xen/include/public/xen.h); ``shift`` may be negative.
    """

    tsc_timestamp: int
    system_time: int
    mul: int
    shift: int
    flags: int
    """1: the TSCs of all VCPUs agree (XEN_PVCLOCK_TSC_STABLE_BIT)."""


class Machine(Protocol):
    """The virtual machine that runs the domain's VCPUs."""

    def upcall(self, vcpu: int, vector: int) -> None:
        """Raise ``vector`` in the VCPU's LAPIC (edge, fixed). The guest will EOI it. Coalescing is fine."""
        ...

    def inject(self, vcpu: int, vector: int) -> None:
        """Inject ``vector`` around the LAPIC as soon as the VCPU takes interrupts. The guest will not EOI it.

        For kernels that know the HVM callback vector only. Called again while one is pending: still one.
        """
        ...

    def translate(self, vcpu: int, address: int, *, write: bool) -> int:
        """The guest-physical address of a virtual one in the VCPU's present page tables.

        Raises BadAddress if it isn't mapped for the kernel (or read-only, for ``write``). Only called for the VCPU
        whose hypercall is being served.
        """
        ...

    def map_frame(self, gfn: int) -> None:
        """Make ``gfn`` a page of RAM, for the guest and in ``domain.memory``, if it isn't one yet.

        Guests choose frames outside of RAM for grant tables. Raises BadAddress if there can be none.
        """
        ...

    def release(self, gfn: int) -> None:
        """Give the host the page at ``gfn`` back (ballooning). It reads as zeros from now on and may be written."""
        ...

    def now_ns(self) -> int:
        """The guest's system time in nanoseconds: what the PV clock shows and timers' deadlines are in."""
        ...

    def wallclock_ns(self) -> int:
        """The time of day (Unix, nanoseconds) at which the guest's system time was 0."""
        ...

    def pvclock(self, vcpu: int) -> PvClock:
        """Numbers for the VCPU's clock that are right now and stay right while its TSC runs undisturbed."""
        ...

    def set_timer(self, vcpu: int, deadline_ns: int | None) -> None:
        """Call ``domain.timer_expired(vcpu)`` at this system time (soon, if it has passed); None: never.

        One deadline for each VCPU; a new one replaces it. Never calls back before it returns.
        """
        ...

    def vcpu_up(self, vcpu: int, context: VcpuContext | None) -> None:
        """Let the VCPU run, from ``context`` on, or from where it stopped if None."""
        ...

    def vcpu_down(self, vcpu: int) -> None:
        """Keep the VCPU out of guest code until ``vcpu_up``; it may be the calling one."""
        ...

    def vcpu_is_up(self, vcpu: int) -> bool:
        """Whether the VCPU has been started, by ``vcpu_up`` or by a start-up IPI, and not taken down since."""
        ...

    def nmi(self, vcpu: int) -> None:
        """Raise a non-maskable interrupt."""
        ...

    def console_write(self, data: bytes) -> None:
        """Emergency output (console_io): goes where the console goes."""
        ...

    def shutdown(self, reason: int) -> None:
        """The guest asked for an end (abi.sched.SHUTDOWN_…): no VCPU may enter guest code again before a resume."""
        ...

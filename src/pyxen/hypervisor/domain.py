"""Xen's view of the one domain that this process runs: everything hypercalls act on.

The machine runs the VCPUs and hands each hypercall to ``Domain.hypercall``; back ends, on the main loop, use
``domain.evtchn`` and ``domain.grants``. One lock guards it all: Python runs one thread at a time anyway.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from pyxen.abi import hvm
from pyxen.abi.errno import EFAULT, EINVAL, ENOSYS, XenError
from pyxen.abi.event_channel import VIRQ_TIMER
from pyxen.abi.grant_table import RESERVED_CONSOLE, RESERVED_XENSTORE
from pyxen.abi.sched import SHUTDOWN_WATCHDOG
from pyxen.abi.shared_info import DOMID_SELF, PAGE_SIZE, TIME, VCPU_INFO_SIZE
from pyxen.abi.vcpu import PVCLOCK_GUEST_STOPPED, RUNSTATE_RUNNING, VCPU_TIME_INFO, VcpuTimeInfo
from pyxen.hypervisor.atomic import SharedPage
from pyxen.hypervisor.evtchn import EventChannels
from pyxen.hypervisor.grants import DEFAULT_MAX_FRAMES, GrantTable
from pyxen.hypervisor.hypercalls import TABLE
from pyxen.hypervisor.machine import Machine
from pyxen.hypervisor.memory import BadAddress, GuestMemory
from pyxen.hypervisor.reservation import Reservation, ram_ranges
from pyxen.hypervisor.shared_info import SharedInfo, private_page
from pyxen.hypervisor.timers import Timers
from pyxen.hypervisor.vcpu import Vcpu

_MASK_32 = 0xFFFFFFFF
_LONGEST_HOLD_S = 0.002
_WAY_S = 0.0001


class Domain:
    """One domain. ``memory_map`` are (address, size, E820 type); RAM in it is what the guest may balloon."""

    def __init__(
        self,
        memory: GuestMemory,
        machine: Machine,
        *,
        domid: int,
        vcpus: int,
        memory_map: Sequence[tuple[int, int, int]],
        uuid: bytes = bytes(16),
        max_grant_frames: int = DEFAULT_MAX_FRAMES,
    ) -> None:
        self.memory = memory
        self.machine = machine
        self.domid = domid
        self.uuid = uuid
        self.memory_map = tuple(memory_map)
        self.reservation = Reservation(ram_ranges(memory_map))
        self.lock = threading.RLock()
        self.params = [0] * hvm.NR_PARAMS
        """HVM parameters, by number."""
        self.callback_vector = 0
        """From HVM_PARAM_CALLBACK_IRQ, for guests without upcall vectors of their own for each VCPU."""
        self.runstate_update_flag = False
        self.shutdown: int | None = None
        """Why the guest asked for its end (SHUTDOWN_…)."""
        self.suspended_by: int | None = None
        """The VCPU in whose hypercall the guest suspended itself last."""
        self.shutdown_code: int | None = None
        """SCHEDOP_shutdown_code: said before the end."""
        self.shared_info = SharedInfo()
        self.vcpus = [self._make_vcpu(index) for index in range(vcpus)]
        self.timers = Timers(machine, vcpus, self._timer_fired, self._watchdog_fired)
        self.evtchn = EventChannels(domid, self.vcpus, self.shared_info, self.lock, self.page)
        self.grants = GrantTable(memory, self.lock, max_grant_frames)

    def _make_vcpu(self, index: int) -> Vcpu:
        offset = self.shared_info.vcpu_info_offset(index)
        if offset is None:
            # Its events are noted here until it registers a vcpu_info.
            return Vcpu(self, index, private_page(), 0)
        return Vcpu(self, index, self.shared_info.page, offset)

    # From the machine

    def hypercall(self, vcpu_index: int, nr: int, args: tuple[int, ...], bits: int) -> int:
        """Serve a hypercall of ``vcpu_index``; what the guest gets in RAX (EAX), negative for an error.

        ``args`` are at least five registers; ``bits`` is the caller's mode, 64 or 32. The caller has checked that
        the guest was in kernel mode. May wait (SCHEDOP_poll), without the lock.
        """
        handler = TABLE.get(nr)
        if handler is None:
            return -ENOSYS
        if bits == 32:
            args = tuple([arg & _MASK_32 for arg in args])
        with self.lock:
            try:
                return handler(self.vcpus[vcpu_index], args, bits)
            except XenError as error:
                return -error.errno
            except BadAddress:
                return -EFAULT

    def timer_expired(self, vcpu: int) -> None:
        """A deadline of ``Machine.set_timer`` has passed."""
        with self.lock:
            self.timers.expired(vcpu)

    def kick(self, vcpu: int) -> None:
        """End a wait of this VCPU inside a hypercall; harmless if it isn't waiting."""
        with self.lock:
            self.vcpus[vcpu].wake()

    def check_upcall(self, vcpu: int) -> None:
        """Interrupt the VCPU again if events are noted: its LAPIC may have dropped the first upcall."""
        with self.lock:
            if self.vcpus[vcpu].upcall_pending:
                self.vcpus[vcpu].interrupt()

    def update_time(self, vcpu: int, *, stopped: bool = False) -> None:
        """Write the VCPU's clock into vcpu_info, and into its second area if there is one.

        ``stopped``: the guest is to know that it stood still, and no watchdog of its need bark.
        """
        with self.lock:
            target = self.vcpus[vcpu]
            clock = self.machine.pvclock(vcpu)
            start = (target.info_offset + TIME) // 4
            words = target.info.u32
            version = words[start] | 1
            words[start] = version
            time = VcpuTimeInfo(
                version, 0, clock.tsc_timestamp, clock.system_time, clock.mul, clock.shift & 0xFF, clock.flags, 0
            )
            offset = target.info_offset + TIME
            shown = time._replace(flags=clock.flags | PVCLOCK_GUEST_STOPPED) if stopped else time
            target.info.view[offset + 4 : offset + VCPU_TIME_INFO.size64] = VCPU_TIME_INFO.pack(shown, 64)[4:]
            words[start] = (version + 1) & _MASK_32
            target.time_area.update(time)

    # From whoever builds the domain

    def set_up_special_pages(self, *, console_gfn: int, store_gfn: int) -> tuple[int, int]:
        """Make ports and grants for the console and xenstore rings, whose pages are zeroed; (console, store) ports."""
        with self.lock:
            console, store = self.evtchn.alloc_unbound(), self.evtchn.alloc_unbound()
            self.params[hvm.PARAM_CONSOLE_PFN] = console_gfn
            self.params[hvm.PARAM_CONSOLE_EVTCHN] = console
            self.params[hvm.PARAM_STORE_PFN] = store_gfn
            self.params[hvm.PARAM_STORE_EVTCHN] = store
            self.grants.grant(RESERVED_CONSOLE, console_gfn)
            self.grants.grant(RESERVED_XENSTORE, store_gfn)
            return console, store

    @property
    def console_gfn(self) -> int:
        return self.params[hvm.PARAM_CONSOLE_PFN]

    @property
    def store_gfn(self) -> int:
        return self.params[hvm.PARAM_STORE_PFN]

    # For hypercalls

    def make_way(self, held_since: float) -> float:
        """Between the steps of a long hypercall: let those in who have been waiting for the lock.

        ``held_since`` (time.monotonic) is when it was taken; the answer is when it was, after this.
        """
        if time.monotonic() < held_since + _LONGEST_HOLD_S:
            return held_since
        self.lock.release()
        # A lock is not fair: who takes it again at once gets it.
        time.sleep(_WAY_S)
        self.lock.acquire()
        return time.monotonic()

    def page(self, gfn: int) -> SharedPage:
        """A frame of the guest's memory, for Xen to write whenever it likes. Raises XenError(EINVAL)."""
        try:
            return SharedPage(self.memory.keep(gfn * PAGE_SIZE, PAGE_SIZE))
        except BadAddress:
            raise XenError(EINVAL) from None

    def has_page(self, gfn: int) -> bool:
        """Whether there is memory at ``gfn``: RAM, or a page of Xen's that the guest placed there."""
        return (
            self.reservation.is_present(gfn)
            or self.shared_info.gfn == gfn
            or any(frame.gfn == gfn for frame in self.grants.all_frames())
        )

    def is_self(self, domid: int) -> bool:
        return domid in (DOMID_SELF, self.domid)

    def require_vcpu(self, index: int, errno: int) -> Vcpu:
        """VCPU ``index`` or XenError(``errno``)."""
        if not 0 <= index < len(self.vcpus):
            raise XenError(errno)
        return self.vcpus[index]

    def place_shared_info(self, gfn: int, bits: int) -> None:
        """Show shared_info at ``gfn``, in the layout of a ``bits`` guest."""
        if self.shared_info.gfn != gfn:
            self._move_shared_info(self.page(gfn), gfn)
        self.shared_info.set_bits(bits)
        self.show_clocks()

    def hide_shared_info(self) -> None:
        """Take shared_info out of the guest's memory again."""
        self._move_shared_info(private_page(), None)

    def _move_shared_info(self, page: SharedPage, gfn: int | None) -> None:
        self.shared_info.place(page, gfn)
        for vcpu in self.vcpus:
            offset = self.shared_info.vcpu_info_offset(vcpu.index)
            if vcpu.info_gfn is None and offset is not None:
                vcpu.info, vcpu.info_offset = page, offset

    def latch_bits(self, bits: int) -> None:
        """The guest, in this mode, has said how it wants to be called: its shared_info has that layout."""
        if bits != self.shared_info.bits:
            self.shared_info.set_bits(bits)
            self.show_clocks()

    def show_clocks(self) -> None:
        """Write the wall clock and every VCPU's clock."""
        self.shared_info.set_wallclock(self.machine.wallclock_ns())
        for vcpu in self.vcpus:
            self.update_time(vcpu.index)

    def place_vcpu_info(self, vcpu: Vcpu, page: SharedPage, gfn: int, offset: int) -> None:
        """Move a VCPU's vcpu_info to a place of its own; every event is looked for once, so that none is lost."""
        old = vcpu.info.view[vcpu.info_offset : vcpu.info_offset + VCPU_INFO_SIZE]
        page.view[offset : offset + VCPU_INFO_SIZE] = bytes(old)
        vcpu.info, vcpu.info_offset, vcpu.info_gfn = page, offset, gfn
        width = self.shared_info.bits // 8
        select = offset + self.shared_info.layout.pending_sel
        page.view[select : select + width] = b"\xff" * width
        vcpu.mark_events_pending()
        self.update_time(vcpu.index)

    def set_runstate(self, vcpu: Vcpu, state: int) -> None:
        vcpu.runstate.change(state, self.machine.now_ns(), flag_updates=self.runstate_update_flag)

    def running(self, vcpu: Vcpu) -> None:
        """The VCPU has been seen in guest code: its runstate says so."""
        if vcpu.runstate.state != RUNSTATE_RUNNING:
            self.set_runstate(vcpu, RUNSTATE_RUNNING)

    def stop(self, reason: int) -> None:
        """The guest's end. The first reason counts, and what SCHEDOP_shutdown_code said before even more."""
        if self.shutdown is None:
            self.shutdown = reason if self.shutdown_code is None else self.shutdown_code
            self.machine.shutdown(self.shutdown)
            for vcpu in self.vcpus:
                vcpu.wake()

    def resume(self) -> None:
        """The machine goes on after a shutdown of kind suspend."""
        with self.lock:
            self.shutdown = self.shutdown_code = None
            self.stood_still()

    def stood_still(self) -> None:
        """The machine goes on after a while in which time did."""
        with self.lock:
            for vcpu in self.vcpus:
                self.update_time(vcpu.index, stopped=True)

    def _timer_fired(self, vcpu: int) -> None:
        self.evtchn.raise_virq(VIRQ_TIMER, vcpu)

    def _watchdog_fired(self) -> None:
        self.stop(SHUTDOWN_WATCHDOG)

"""The machine under a domain, on KVM: VCPUs as threads, upcalls as MSIs, memory as slots. See machine.Machine."""

from __future__ import annotations

import contextlib
import mmap
import signal
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from types import FrameType
from typing import Final, NamedTuple, Protocol

from pyxen.abi.hvm import PARAM_TRIPLE_FAULT_REASON
from pyxen.abi.sched import SHUTDOWN_POWEROFF, SHUTDOWN_REBOOT
from pyxen.abi.vcpu import VcpuContext
from pyxen.errors import PyxenError
from pyxen.hypervisor import tsc
from pyxen.hypervisor.builder import cpuid, entry, layout
from pyxen.hypervisor.builder.build import Built, pages
from pyxen.hypervisor.clock import GuestClock, host_tsc
from pyxen.hypervisor.core import CpuState
from pyxen.hypervisor.departures import Departures
from pyxen.hypervisor.kvm import CpuidEntry, Kvm, KvmVcpu
from pyxen.hypervisor.kvm.uapi import MSR_EXIT_INVALID, MSR_EXIT_UNKNOWN, X2APIC_32_BIT_IDS, Capability
from pyxen.hypervisor.kvm.vcpu import KICK
from pyxen.hypervisor.loop import Loop, Timer
from pyxen.hypervisor.machine import PvClock
from pyxen.hypervisor.memory import PAGE_SHIFT, PAGE_SIZE, BadAddress, GuestMemory, Region
from pyxen.hypervisor.paging import walk
from pyxen.hypervisor.processor import Hold, Observer, Processor
from pyxen.hypervisor.state import cpu
from pyxen.hypervisor.state.words import Cpu
from pyxen.hypervisor.throttle import Throttle

_MSR_KERNEL_GS_BASE: Final = 0xC0000102
_MOST_FRAMES: Final = 8192
"""Pages outside of RAM that one guest may have."""
_NMI_MESSAGE: Final = 4 << 8
_FIRST_RETRY_NS, _LAST_RETRY_NS = 1_000_000, 1_000_000_000
_PARK_S: Final = 5.0
_ZERO_PAGE: Final = bytes(PAGE_SIZE)
_XENS_LEAVES: Final = 4  # 0x4…: for hypervisors to tell of themselves


class Moment(NamedTuple):
    """System time (ns) at which TSCs were read, and how fast they run."""

    system_time: int
    tsc_khz: int


class XenSide(Protocol):
    """What the machine calls of domain.Domain."""

    params: list[int]

    @property
    def lock(self) -> AbstractContextManager[object, bool | None]: ...

    def hypercall(self, vcpu_index: int, nr: int, args: tuple[int, ...], bits: int) -> int: ...

    def timer_expired(self, vcpu: int) -> None: ...

    def kick(self, vcpu: int) -> None: ...

    def check_upcall(self, vcpu: int) -> None: ...

    def stop(self, reason: int) -> None: ...


class KvmMachine:
    """Made around a domain's memory; ``boot`` or ``load`` says where its VCPUs are, ``attach`` gives it Xen's side,
    ``start`` lets it run.

    ``console`` is given emergency output, ``stopped`` the guest's reason (SHUTDOWN_…) for its end, ``failed`` the
    machine's own, ``vcpus_changed`` that a VCPU went up or down: all four in whatever thread it happens, and to return
    at once.
    """

    def __init__(
        self,
        memory: GuestMemory,
        vcpus: int,
        loop: Loop,
        *,
        domid: int,
        console: Callable[[bytes], None],
        stopped: Callable[[int], None],
        failed: Callable[[str], None],
        vcpus_changed: Callable[[], None] = lambda: None,
    ) -> None:
        """Raises PyxenError if KVM refuses."""
        self.memory = memory
        self._console = console
        self._stopped = stopped
        self._failed = failed
        self._vcpus_changed = vcpus_changed
        self._domain: XenSide | None = None
        self._frames = 0
        signal.signal(KICK, _nothing)
        self._kvm = Kvm()
        self._vm = self._kvm.create_vm()
        self._vm.place_intel_pages(layout.INTEL_PAGES)
        for region in self.memory.regions:
            self._vm.add_memory(region)
        self._vm.enable(Capability.USER_SPACE_MSR, MSR_EXIT_INVALID | MSR_EXIT_UNKNOWN)
        if self._kvm.check(Capability.X2APIC_API):
            self._vm.enable(Capability.X2APIC_API, X2APIC_32_BIT_IDS)
        self._vm.create_irqchip()
        # All of them before any runs: then KVM gives them one common TSC.
        kvm_vcpus = [self._vm.create_vcpu(index) for index in range(vcpus)]
        self._domid = domid
        self._supported = self._kvm.supported_cpuid()
        self._msrs = cpu.wanted_msrs(self._kvm.msr_indices())
        scales = self._kvm.check(Capability.TSC_CONTROL)
        self._tsc_bits = tsc.fraction_bits(self._supported) if scales else None
        self._xsave = self._kvm.check(Capability.XSAVE2)
        self._cpuid = self._show_cpuid(kvm_vcpus)
        self._clock = GuestClock(kvm_vcpus[0].tsc_khz(), tsc.offsets(kvm_vcpus))
        self._processors = [Processor(index, kvm, self.memory, self) for index, kvm in enumerate(kvm_vcpus)]
        self._throttle = Throttle(self._processors)
        self._owed: set[int] = set()
        self._retry_ns = _FIRST_RETRY_NS
        self._retry = Timer(loop, self._pay_all)
        self._departures = Departures(loop, self._still_up)
        self._timers = [Timer(loop, self._expired(index)) for index in range(vcpus)]

    def _show_cpuid(self, vcpus: list[KvmVcpu]) -> list[list[CpuidEntry]]:
        tsc_khz = vcpus[0].tsc_khz()
        shown = []
        for index, vcpu in enumerate(vcpus):
            shown.append(cpuid.leaves(self._supported, index, len(vcpus), domid=self._domid, tsc_khz=tsc_khz))
            vcpu.set_cpuid(shown[-1])
            vcpu.set_msr(entry.MTRR_DEFAULT_TYPE, entry.MTRR_WRITE_BACK)
        return shown

    # For the process

    def boot(self, built: Built) -> None:
        """Have VCPU 0 begin at the kernel's entry. This or ``load``, before ``start``."""
        first = self._processors[0].kvm
        sregs = first.get_sregs()
        regs = entry.pvh(sregs, built.entry, built.start_info)
        first.set_sregs(sregs)
        first.set_regs(regs)

    def save(self, suspended_by: int) -> tuple[Moment, list[Cpu]]:
        """The time, and the VCPUs of a guest that has suspended itself. Not with domain.lock held.

        For the one that has, the state is such that its hypercall returns 0: it finds itself in a new domain.
        """
        host = host_tsc()
        found = []
        for processor in self._processors:
            processor.wait_parked(_PARK_S)
            found.append(
                cpu.capture(
                    processor.kvm,
                    processor.index,
                    up=processor.up,
                    held=processor.is_held(Hold.DOWN),
                    cpuid=self._cpuid[processor.index],
                    msrs=self._msrs,
                    xsave=self._xsave,
                    tsc=self._clock.tsc(processor.index, host),
                    returns=0 if processor.index == suspended_by else None,
                )
            )
        return Moment(self._clock.at(host), self._clock.tsc_khz), found

    def load(self, moment: Moment, cpus: Sequence[Cpu]) -> None:
        """Give the VCPUs what ``save`` has found, and let time go on from there.

        Raises Unsupported where this host's processor is not enough, InvalidRequest and EngineError.
        """
        for state in cpus:
            cpu.check_features(state, self._supported)
        # TSCs first, as timers of LAPICs are set by them; all at the same moment, so that they keep their distances.
        host = host_tsc()
        kvm_vcpus = [processor.kvm for processor in self._processors]
        khz, scale = tsc.go_on(kvm_vcpus, [state.tsc for state in cpus], host, moment.tsc_khz, self._tsc_bits)
        for processor, state in zip(self._processors, cpus, strict=True):
            xen_leaves = cpuid.xen_leaves(processor.index, self._domid, khz)
            kept = [leaf for leaf in cpu.entries(state) if leaf.function >> 28 != _XENS_LEAVES]
            self._cpuid[processor.index] = [*kept, *xen_leaves]
            processor.kvm.set_cpuid(self._cpuid[processor.index])
            cpu.restore(processor.kvm, state)
            processor.up = state.up
            if state.held:
                processor.hold(Hold.DOWN)
        offsets = tsc.offsets(kvm_vcpus)
        self._clock = GuestClock(khz, offsets, since_ns=moment.system_time, start=host, scale=scale)

    def attach(self, domain: XenSide) -> None:
        """``domain`` serves the guest's hypercalls from now on. Before ``start``; later, what passes calls on to it."""
        self._domain = domain

    def observe(self, observer: Observer | None) -> None:
        """Tell ``observer`` of all exits but hypercalls; None: nobody."""
        for processor in self._processors:
            processor.observer = observer

    def start(self, *, paused: bool) -> None:
        """Start the VCPUs' threads."""
        for processor in self._processors:
            if paused:
                processor.hold(Hold.PAUSED)
            processor.start()

    def pause(self) -> None:
        """Stop all VCPUs, and wait until they stand still. Not with domain.lock held."""
        for processor in self._processors:
            processor.hold(Hold.PAUSED)
            self._xen.kick(processor.index)
        for processor in self._processors:
            processor.wait_parked(_PARK_S)

    def unpause(self) -> None:
        for processor in self._processors:
            processor.release(Hold.PAUSED)

    @property
    def tsc_khz(self) -> int:
        """How fast the guest's TSC runs."""
        return self._clock.tsc_khz

    def check_tsc(self, khz: int) -> None:
        """Raises Unsupported where a guest whose TSC ran at ``khz`` can't go on."""
        tsc.check(khz, self._clock.tsc_khz, self._tsc_bits)

    def log_writes(self, region: Region, on: bool) -> None:
        """Begin to note which pages of ``region`` the guest writes, or stop."""
        self._vm.log_writes(region, on)

    def written(self, region: Region) -> int:
        """See kvm.Vm.written."""
        return self._vm.written(region)

    def throttle(self, share: float) -> None:
        """Keep the VCPUs out of guest code for this share of the time. One thread at a time."""
        self._throttle.set(share)

    def vcpus_up(self) -> frozenset[int]:
        """The VCPUs that run, or may as soon as the machine does."""
        return frozenset(processor.index for processor in self._processors if processor.up)

    def vcpu_left(self, vcpu: int) -> None:
        """The guest has let go of what it needs a VCPU for: see if it has taken it offline. From any thread."""
        if vcpu:
            self._departures.expect(vcpu)

    def cpu_states(self) -> list[CpuState]:
        """The registers of all VCPUs that are up. Paused or stopped, and not with domain.lock held."""
        states = []
        for processor in self._processors:
            if processor.up:
                processor.wait_parked(_PARK_S)
                kvm = processor.kvm
                gs_base = kvm.get_msr(_MSR_KERNEL_GS_BASE)
                states.append(CpuState(processor.index, kvm.get_regs(), kvm.get_sregs(), gs_base))
        return states

    def resume(self) -> None:
        """Go on after Xen's side has called ``shutdown``."""
        for processor in self._processors:
            processor.release(Hold.STOPPED)

    def close(self) -> None:
        """End the VCPUs and give everything back. Not with domain.lock held."""
        self._throttle.set(0.0)
        for processor in self._processors:
            processor.hold(Hold.STOPPED)
        for processor in self._processors:
            self._xen.kick(processor.index)
            processor.end()
        for timer in (*self._timers, self._retry):
            timer.close()
        self._departures.close()
        self._vm.close()
        self._kvm.close()

    # For Xen's side: machine.Machine

    def upcall(self, vcpu: int, vector: int) -> None:
        if not self._vm.signal_msi(vcpu, vector):
            # Its LAPIC is off and forgets interrupts, where a real Xen would remember: so this does.
            if not self._owed:
                self._retry_ns = _FIRST_RETRY_NS
                self._retry.arm(self._retry_ns)
            self._owed.add(vcpu)

    def inject(self, vcpu: int, vector: int) -> None:
        self._vm.signal_msi(vcpu, vector)

    def translate(self, vcpu: int, address: int, *, write: bool) -> int:
        return walk(self.memory, self._processors[vcpu].kvm.sregs, address, write=write)

    def map_frame(self, gfn: int) -> None:
        start = gfn << PAGE_SHIFT
        if any(region.start <= start < region.end for region in self.memory.regions):
            return
        if not 0 < start < layout.MOST_BYTES or layout.ACPI <= start < layout.HIGH_RAM or self._frames >= _MOST_FRAMES:
            raise BadAddress(start, PAGE_SIZE)
        region = self.memory.add(start, pages(PAGE_SIZE))
        try:
            self._vm.add_memory(region)
        except PyxenError:
            self.memory.remove(region)
            raise BadAddress(start, PAGE_SIZE) from None
        self._frames += 1

    def release(self, gfn: int) -> None:
        start = gfn << PAGE_SHIFT
        region = self.memory.find(start, PAGE_SIZE)
        if isinstance(backing := region.data.obj, mmap.mmap):
            with contextlib.suppress(OSError):  # a part of a huge page is not taken back
                backing.madvise(mmap.MADV_DONTNEED, start - region.start, PAGE_SIZE)
        if self.memory.is_copy and self.memory.look(start, PAGE_SIZE) != _ZERO_PAGE:
            self.memory.view(start, PAGE_SIZE)[:] = _ZERO_PAGE
        self.memory.mark(start, PAGE_SIZE)

    def now_ns(self) -> int:
        return self._clock.now_ns()

    def wallclock_ns(self) -> int:
        return self._clock.wallclock_ns()

    def pvclock(self, vcpu: int) -> PvClock:
        return self._clock.pvclock(vcpu)

    def set_timer(self, vcpu: int, deadline_ns: int | None) -> None:
        if deadline_ns is None:
            self._timers[vcpu].disarm()
        else:
            self._timers[vcpu].arm(deadline_ns - self._clock.now_ns())

    def vcpu_up(self, vcpu: int, context: VcpuContext | None) -> None:
        processor = self._processors[vcpu]
        if context is not None:
            processor.begin_at(context)
        processor.up = True
        processor.release(Hold.DOWN)
        self._vcpus_changed()

    def vcpu_down(self, vcpu: int) -> None:
        # In this order: one that isn't up and isn't held has just been started.
        self._processors[vcpu].hold(Hold.DOWN)
        self._processors[vcpu].up = False
        self._vcpus_changed()

    def vcpu_is_up(self, vcpu: int) -> bool:
        return self._processors[vcpu].up

    def nmi(self, vcpu: int) -> None:
        self._vm.signal_msi(vcpu, _NMI_MESSAGE)

    def console_write(self, data: bytes) -> None:
        self._console(data)

    def shutdown(self, reason: int) -> None:
        for processor in self._processors:
            processor.hold(Hold.STOPPED)
        self._stopped(reason)

    # For the VCPUs' threads: processor.Exits

    def hypercall(self, vcpu_index: int, nr: int, args: tuple[int, ...], bits: int) -> int:
        domain = self._domain
        assert domain is not None, "the machine runs before attach()"
        result = domain.hypercall(vcpu_index, nr, args, bits)
        if self._owed and vcpu_index in self._owed:
            self._pay([vcpu_index])
        return result

    def started(self, vcpu: int) -> None:
        self._vcpus_changed()
        self._xen.check_upcall(vcpu)

    def halted(self, vcpu: int) -> None:
        self._vcpus_changed()

    def switched_off(self) -> None:
        with self._xen.lock:
            self._xen.stop(SHUTDOWN_POWEROFF)

    def triple_fault(self, vcpu: int) -> None:
        with self._xen.lock:
            self._xen.stop(self._xen.params[PARAM_TRIPLE_FAULT_REASON] or SHUTDOWN_REBOOT)

    def failed(self, vcpu: int, reason: str) -> None:
        for processor in self._processors:
            processor.hold(Hold.STOPPED)
        self._failed(f"VCPU {vcpu}: {reason}")

    @property
    def _xen(self) -> XenSide:
        assert self._domain is not None, "the machine runs before attach()"
        return self._domain

    def _pay(self, vcpus: Iterable[int]) -> None:
        """Try the upcalls again that were lost."""
        with self._xen.lock:
            for vcpu in vcpus:
                self._owed.discard(vcpu)
                self._xen.check_upcall(vcpu)

    def _pay_all(self) -> None:
        """The same for those that make no hypercalls; less and less often, as a VCPU may be off for good."""
        with self._xen.lock:
            retry_ns = min(2 * self._retry_ns, _LAST_RETRY_NS)
            self._pay(list(self._owed))
            if self._owed:
                self._retry_ns = retry_ns
                self._retry.arm(retry_ns)

    def _still_up(self, vcpu: int) -> bool:
        processor = self._processors[vcpu]
        if processor.up:
            processor.look()
        return processor.up

    def _expired(self, vcpu: int) -> Callable[[], None]:
        return lambda: self._xen.timer_expired(vcpu)


def _nothing(number: int, frame: FrameType | None) -> None:
    """A signal handler must be there for a system call to be interrupted."""

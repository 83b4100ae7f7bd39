"""A VCPU's thread: runs guest code in KVM, serves what the guest stops for, stands still when it has to."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable
from enum import Enum, auto
from typing import Final, Protocol

from pyxen.abi.cpuid import HYPERCALL_MSR
from pyxen.abi.vcpu import VcpuContext
from pyxen.errors import PyxenError
from pyxen.hypervisor import linux
from pyxen.hypervisor.builder import acpi, entry, hypercall_sites
from pyxen.hypervisor.kvm import KvmVcpu
from pyxen.hypervisor.kvm.uapi import RUN_UNION, Exit, MpState, Register
from pyxen.hypervisor.memory import PAGE_SIZE, BadAddress, GuestMemory

# Exit.IO as one word: OUT, 4 bytes, to the port.
_HYPERCALL_OUT: Final = 1 | 4 << 8 | hypercall_sites.PORT << 16
_CS_LONG: Final = 19  # struct kvm_sregs: cs.l
_SS_DPL: Final = 5 * 24 + 16  # ss.dpl, the current privilege level
_ZEROS: Final = frozenset({0x40, 0x41, 0x42, acpi.SLEEP_STATUS_PORT})
"""Ports that read as 0. Linux asks the timer chip's counters fifty thousand times whether they are at 255 still."""
_INTERRUPTS: Final = 1 << 9  # RFLAGS.IF
_MASK_32: Final = 0xFFFFFFFF
_MASK_64: Final = (1 << 64) - 1
_EPERM: Final = 1
_OBSERVED: Final = 32
"""Bytes of an exit that an observer is shown."""


Observer = Callable[[int, int, int, int, bytes, bytes], None]
"""Gets the VCPU, the exit, when it began (``time.perf_counter_ns``), how long it took (ns), the first bytes of
kvm_run's union before it was served, and after it: for an Exit.IO the data instead."""


class Hold(Enum):
    """Why a VCPU may not run guest code."""

    PAUSED = auto()
    DOWN = auto()
    STOPPED = auto()
    THROTTLED = auto()


class Exits(Protocol):
    """Who serves what a VCPU stops for, in its thread."""

    def hypercall(self, vcpu_index: int, nr: int, args: tuple[int, ...], bits: int) -> int:
        """What the guest gets in RAX."""
        ...

    def started(self, vcpu: int) -> None:
        """The VCPU has been brought up by a start-up IPI."""
        ...

    def halted(self, vcpu: int) -> None:
        """The VCPU has halted with interrupts off: it is down until a start-up IPI."""
        ...

    def switched_off(self) -> None:
        """The guest has put the machine to sleep for ever."""
        ...

    def triple_fault(self, vcpu: int) -> None: ...

    def failed(self, vcpu: int, reason: str) -> None:
        """The VCPU can't go on, through no fault of its guest's (or one that KVM can't tell)."""
        ...


class Processor:
    """VCPU ``index`` and its thread. VCPU 0 is up from the start, others once they are started."""

    def __init__(self, index: int, kvm: KvmVcpu, memory: GuestMemory, exits: Exits) -> None:
        self.index = index
        self.kvm = kvm
        self.up = index == 0
        self.observer: Observer | None = None
        """Told of every exit but the hypercalls of the kernel, while somebody traces the domain."""
        self._memory = memory
        self._exits = exits
        self._changed = threading.Condition()
        self._holds: set[Hold] = set()
        self._parked = False
        self._context: VcpuContext | None = None
        self._ending = False
        self._attention = False
        self._thread = threading.Thread(target=self._main, name=f"vcpu-{index}", daemon=True)

    def start(self) -> None:
        """Run, unless held."""
        self._thread.start()

    def hold(self, why: Hold) -> None:
        """Keep the VCPU out of guest code from now on, but for the moment that it takes to leave it."""
        with self._changed:
            self._holds.add(why)
            self._disturb()

    def release(self, why: Hold) -> None:
        """Let it run again, if there is no other reason."""
        with self._changed:
            self._holds.discard(why)
            self._changed.notify_all()

    def is_held(self, why: Hold) -> bool:
        with self._changed:
            return why in self._holds

    def wait_parked(self, timeout_s: float) -> bool:
        """Wait until a held VCPU stands still, with the guest's state in KVM complete."""
        with self._changed:
            return self._changed.wait_for(lambda: self._parked or not self._thread.is_alive(), timeout_s)

    def look(self) -> None:
        """Have the VCPU's state looked at soon, in its own thread: nobody is told when it halts for good."""
        if self._thread.ident is not None and self._thread.is_alive():
            self.kvm.kick(self._thread.ident)

    def begin_at(self, context: VcpuContext) -> None:
        """Take these registers before running on."""
        with self._changed:
            self._context = context
            self._disturb()

    def end(self) -> None:
        """Leave guest code for good and wait for the thread."""
        with self._changed:
            self._ending = True
            self._disturb()
        if self._thread.is_alive():
            self._thread.join()
        self.kvm.close()

    def _disturb(self) -> None:
        self._attention = True
        self._changed.notify_all()
        if (
            self._thread.ident is not None
            and self._thread.is_alive()
            and self._thread is not threading.current_thread()
        ):
            self.kvm.kick(self._thread.ident)

    def _main(self) -> None:
        # As QEMU names its threads, so that they are found and accounted for alike.
        linux.name_thread(f"CPU {self.index}/KVM")
        try:
            self._loop()
        except PyxenError as error:
            self._exits.failed(self.index, str(error))
        except Exception as error:
            # A fault of ours that a guest has found: its domain ends, and does not stand still for ever.
            traceback.print_exc()
            self._exits.failed(self.index, f"{type(error).__name__}: {error}")

    def _loop(self) -> None:
        run, words = self.kvm.run, self.kvm.page[RUN_UNION : RUN_UNION + 4].cast("I")
        out, hypercall = Exit.IO.value, self._hypercall
        while True:
            if self._attention and not self._attend():
                return
            reason = run()
            if reason == out and words[0] == _HYPERCALL_OUT:
                hypercall()
            elif not self._other_exit(reason):
                return

    def _attend(self) -> bool:
        """Do what other threads want; False: end."""
        with self._changed:
            self.kvm.unkick()
            self._attention = False
            while (self._holds or self._ending) and self._context is None:
                if self._ending:
                    return False
                if not self._parked:
                    self.kvm.settle()
                    self._parked = True
                    self._changed.notify_all()
                self._changed.wait()
            self._parked = False
            context, self._context = self._context, None
            # Back here at once where a hold is left.
            self._attention = bool(self._holds) or self._ending
        if context is not None:
            sregs = self.kvm.get_sregs()
            self.kvm.set_regs(entry.initialised(sregs, context))
            self.kvm.set_sregs(sregs)
            self.kvm.set_mp_state(MpState.RUNNABLE)
            self.up = True
        return True

    def _hypercall(self) -> None:
        regs, sregs = self.kvm.regs, self.kvm.sregs
        if sregs[_SS_DPL]:
            if self.observer is not None:
                self.observer(self.index, Exit.IO, time.perf_counter_ns(), 0, self._facts(), b"")
            regs[Register.RAX] = -_EPERM & _MASK_64
        elif sregs[_CS_LONG]:
            # RDI, RSI, RDX, R10, R8, R9: by number, as this is the path that counts.
            args = (regs[5], regs[4], regs[3], regs[10], regs[8], regs[9])
            regs[0] = self._exits.hypercall(self.index, regs[0] & _MASK_32, args, 64) & _MASK_64
        else:
            args = (regs[1], regs[2], regs[3], regs[4], regs[5], regs[7])
            regs[0] = self._exits.hypercall(self.index, regs[0] & _MASK_32, args, 32) & _MASK_32
        self.kvm.dirty()

    def _other_exit(self, reason: int) -> bool:
        """All exits but hypercalls; False: the thread ends."""
        observer = self.observer
        if observer is None:
            return self._serve(reason)
        before, began = self._facts(), time.perf_counter_ns()
        goes_on = self._serve(reason)
        took = time.perf_counter_ns() - began
        data = bytes(self.kvm.io()[3][:_OBSERVED]) if reason == Exit.IO else self._facts()
        observer(self.index, reason, began, took, before, data)
        return goes_on

    def _facts(self) -> bytes:
        return bytes(self.kvm.page[RUN_UNION : RUN_UNION + _OBSERVED])

    def _serve(self, reason: int) -> bool:
        match reason:
            case Exit.INTR:
                self._interrupted()
            case Exit.IO:
                self._port()
            case Exit.MMIO:
                is_write, _, data = self.kvm.mmio()
                if not is_write:
                    data[:] = b"\xff" * len(data)
            case Exit.RDMSR:
                self.kvm.answer_msr(None)
            case Exit.WRMSR:
                self._write_msr()
            case Exit.SHUTDOWN:
                self._exits.triple_fault(self.index)
                self.hold(Hold.STOPPED)
            case _:
                self._exits.failed(self.index, self.kvm.failure())
                return False
        return True

    def _interrupted(self) -> None:
        with self._changed:
            if not self._attention:
                self.kvm.unkick()
        if not self.up:
            # One that VCPUOP_down keeps out of guest code has been interrupted for that.
            if not self.is_held(Hold.DOWN) and self.kvm.mp_state() != MpState.UNINITIALIZED:
                self.up = True
                self._exits.started(self.index)
        elif self.index and not self.kvm.regs[Register.RFLAGS] & _INTERRUPTS:
            self._see_halted()

    def _see_halted(self) -> None:
        """A HLT that no interrupt can end is how guests take a VCPU offline, and Xen takes it for that (hvm_hlt).

        KVM would start it again without a word; in this state its ``run`` returns when that happens.
        """
        if self.kvm.mp_state() == MpState.HALTED:
            self.kvm.set_mp_state(MpState.UNINITIALIZED)
            self.up = False
            self._exits.halted(self.index)

    def _port(self) -> None:
        is_out, port, size, data = self.kvm.io()
        if not is_out:
            data[:] = bytes(len(data)) if port in _ZEROS else b"\xff" * len(data)
        elif port == acpi.SLEEP_CONTROL_PORT and size == 1 and data[0] & acpi.SOFT_OFF == acpi.SOFT_OFF:
            self._exits.switched_off()

    def _write_msr(self) -> None:
        """The guest asks for its hypercall page; anything else is as on hardware that has no such MSR."""
        index, value = self.kvm.msr()
        if index != HYPERCALL_MSR or value & (PAGE_SIZE - 1):
            self.kvm.answer_msr(None)
            return
        try:
            self._memory.write(value, hypercall_sites.hypercall_page())
        except BadAddress:
            self.kvm.answer_msr(None)
        else:
            self.kvm.answer_msr(0)

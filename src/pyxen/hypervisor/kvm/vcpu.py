"""A VCPU of KVM's and its ``struct kvm_run``, the page through which it tells why it stopped.

Registers are shared through that page (KVM_CAP_SYNC_REGS): after each exit ``regs`` and ``sregs`` are the guest's,
and what is written to them counts from the next entry once it is marked dirty. No ioctl is needed for either.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import signal
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from pyxen.errors import EngineError
from pyxen.hypervisor.kvm import cpuid, uapi
from pyxen.hypervisor.kvm.ioctl import call, refusal
from pyxen.hypervisor.kvm.registers import SpecialRegisters
from pyxen.hypervisor.kvm.uapi import Call, Exit

KICK: Final = signal.SIGUSR1
"""What interrupts KVM_RUN; the process must have a handler for it, which need not do anything."""

_U32: Final = struct.Struct("<I")
_COUNT: Final = struct.Struct("<II")
# A plain number: in Python 3.11 looking up an enum's member takes 100 ns.
_RUN: Final = Call.RUN.value
_MSRS_AT_ONCE: Final = 64
_MSR_TSC: Final = 0x10


class KvmVcpu:
    """One VCPU. All but ``kick`` is for the thread that runs it (KVM blocks others until the VCPU exits)."""

    def __init__(self, fd: int, run_size: int) -> None:
        self._fd = fd
        page = memoryview(mmap.mmap(fd, run_size))
        self.regs: memoryview = page[uapi.RUN_REGS : uapi.RUN_SREGS].cast("Q")
        """The guest's registers, to be indexed by uapi.Register; for writing see ``dirty``."""
        self.sregs: memoryview = page[uapi.RUN_SREGS : uapi.RUN_EVENTS]
        """``struct kvm_sregs`` at the last exit."""
        self.page = page
        self._reason = page[uapi.RUN_EXIT_REASON : uapi.RUN_EXIT_REASON + 4].cast("I")
        self._dirty = page[uapi.RUN_DIRTY_REGS : uapi.RUN_DIRTY_REGS + 8].cast("Q")
        page[uapi.RUN_VALID_REGS : uapi.RUN_VALID_REGS + 8].cast("Q")[0] = uapi.SYNC_REGS | uapi.SYNC_SREGS

    def run(self) -> int:
        """Run the guest until something must be done for it; an Exit, or the number of an unknown one."""
        try:
            fcntl.ioctl(self._fd, _RUN, 0)
        except (InterruptedError, BlockingIOError):
            # BlockingIOError: a VCPU that waited to be started has been; it runs the next time.
            return Exit.INTR
        except OSError as error:
            raise refusal(Call.RUN, error.errno) from error
        reason: int = self._reason[0]
        return reason

    def dirty(self) -> None:
        """``regs`` have been changed."""
        self._dirty[0] |= uapi.SYNC_REGS

    def kick(self, thread: int) -> None:
        """Make the ``run`` of that thread (threading.get_ident()) return, now or as soon as it is called."""
        self.page[uapi.RUN_IMMEDIATE_EXIT] = 1
        signal.pthread_kill(thread, KICK)

    def unkick(self) -> None:
        """Let ``run`` run again."""
        self.page[uapi.RUN_IMMEDIATE_EXIT] = 0

    def settle(self) -> None:
        """Finish the last exit (an OUT, say) without running the guest: its state is whole afterwards."""
        immediate = self.page[uapi.RUN_IMMEDIATE_EXIT]
        self.page[uapi.RUN_IMMEDIATE_EXIT] = 1
        self.run()
        self.page[uapi.RUN_IMMEDIATE_EXIT] = immediate

    def io(self) -> tuple[int, int, int, memoryview]:
        """After Exit.IO: (1 for OUT or 0 for IN, port, size of one datum, the data)."""
        direction, size, port, count, offset = uapi.IO_EXIT.unpack_from(self.page, uapi.RUN_UNION)
        return direction, port, size, self.page[offset : offset + size * count]

    def mmio(self) -> tuple[bool, int, memoryview]:
        """After Exit.MMIO: (is it a write?, address, the data)."""
        address, _, length, is_write = uapi.MMIO_EXIT.unpack_from(self.page, uapi.RUN_UNION)
        start = uapi.RUN_UNION + 8
        return bool(is_write), address, self.page[start : start + min(length, 8)]

    def msr(self) -> tuple[int, int]:
        """After Exit.RDMSR and WRMSR: (index, value written)."""
        _, _, index, value = uapi.MSR_EXIT.unpack_from(self.page, uapi.RUN_UNION)
        return index, value

    def answer_msr(self, value: int | None) -> None:
        """The value read (anything, for a write), or None: the guest gets a general protection fault."""
        self.page[uapi.RUN_UNION] = value is None
        if value is not None:
            struct.pack_into("<Q", self.page, uapi.RUN_UNION + 16, value)

    def failure(self) -> str:
        """After an exit that can't be handled: what KVM says, in words."""
        reason = self._reason[0]
        if reason == Exit.INTERNAL_ERROR:
            suberror, _, flags, size, code = uapi.ERROR_EXIT.unpack_from(self.page, uapi.RUN_UNION)
            if suberror == 1:
                instruction = f" {code[:size].hex(' ')}" if flags & 1 else ""
                return f"KVM could not emulate the instruction{instruction} at {self.regs[uapi.Register.RIP]:#x}"
            return f"KVM reports internal error {suberror} at {self.regs[uapi.Register.RIP]:#x}"
        if reason == Exit.FAIL_ENTRY:
            (code,) = uapi.FAILED_EXIT.unpack_from(self.page, uapi.RUN_UNION)
            return f"the CPU refused to run the guest: {code:#x}"
        return f"KVM stopped with the unknown exit {reason}"

    def get(self, number: Call, size: int | None = None) -> bytearray:
        """The structure that this call gives, of ``size`` bytes where that is more than its number says."""
        buffer = bytearray(number.size if size is None else size)
        call(self._fd, number, buffer)
        return buffer

    def put(self, number: Call, data: bytes) -> None:
        """Set what this call sets."""
        call(self._fd, number, bytearray(data))

    def set_regs(self, values: Mapping[uapi.Register, int]) -> None:
        """All general registers; those not named are 0."""
        row = [values.get(register, 0) for register in uapi.Register]
        call(self._fd, Call.SET_REGS, bytearray(struct.pack("<18Q", *row)))

    def get_regs(self) -> tuple[int, ...]:
        """In the order of uapi.Register."""
        buffer = bytearray(uapi.REGS_SIZE)
        call(self._fd, Call.GET_REGS, buffer)
        return struct.unpack("<18Q", buffer)

    def get_sregs(self) -> SpecialRegisters:
        buffer = bytearray(uapi.SREGS_SIZE)
        call(self._fd, Call.GET_SREGS, buffer)
        return SpecialRegisters(buffer)

    def set_sregs(self, sregs: SpecialRegisters) -> None:
        call(self._fd, Call.SET_SREGS, bytearray(sregs.data))

    def set_cpuid(self, entries: Iterable[cpuid.CpuidEntry]) -> None:
        call(self._fd, Call.SET_CPUID2, cpuid.pack(entries))

    def get_msr(self, index: int) -> int:
        """Raises EngineError if KVM does not know it."""
        buffer = bytearray(_COUNT.pack(1, 0) + uapi.MSR.pack(index, 0, 0))
        if call(self._fd, Call.GET_MSRS, buffer) != 1:
            raise EngineError(f"KVM has no MSR {index:#x}")
        value: int = uapi.MSR.unpack_from(buffer, _COUNT.size)[2]
        return value

    def set_msr(self, index: int, value: int) -> None:
        """Raises EngineError if KVM does not take it."""
        buffer = bytearray(_COUNT.pack(1, 0) + uapi.MSR.pack(index, 0, value))
        if call(self._fd, Call.SET_MSRS, buffer) != 1:
            raise EngineError(f"KVM does not take {value:#x} for MSR {index:#x}")

    def get_msrs(self, indices: Sequence[int]) -> list[tuple[int, int]]:
        """(index, value) of those MSRs that this VCPU has."""
        found: list[tuple[int, int]] = []
        while indices:
            some = indices[:_MSRS_AT_ONCE]
            buffer = bytearray(_COUNT.pack(len(some), 0) + b"".join(uapi.MSR.pack(index, 0, 0) for index in some))
            count = call(self._fd, Call.GET_MSRS, buffer)
            rows = [uapi.MSR.unpack_from(buffer, _COUNT.size + n * uapi.MSR.size) for n in range(count)]
            found += [(index, value) for index, _, value in rows]
            # KVM stops at the first one that it refuses.
            indices = indices[count + (count < len(some)) :]
        return found

    def mp_state(self) -> int:
        buffer = bytearray(4)
        call(self._fd, Call.GET_MP_STATE, buffer)
        value: int = _U32.unpack(buffer)[0]
        return value

    def set_mp_state(self, state: uapi.MpState) -> None:
        call(self._fd, Call.SET_MP_STATE, bytearray(_U32.pack(state)))

    def inject_nmi(self) -> None:
        call(self._fd, Call.NMI)

    def tsc_khz(self) -> int:
        return call(self._fd, Call.GET_TSC_KHZ)

    def set_tsc_khz(self, khz: int) -> None:
        """Have the guest's TSC run at ``khz``. Raises EngineError where the processor can't."""
        call(self._fd, Call.SET_TSC_KHZ, khz)

    def tsc_offset(self) -> int | None:
        """The guest's TSC less the host's (scaled), modulo 2⁶⁴; None where KVM is too old to tell."""
        value = ctypes.c_uint64()
        row = uapi.DEVICE_ATTR.pack(0, *uapi.VCPU_TSC_OFFSET, ctypes.addressof(value))
        try:
            call(self._fd, Call.GET_DEVICE_ATTR, bytearray(row))
        except EngineError:
            return None
        return value.value

    def set_tsc(self, value: int, host: int) -> None:
        """Have the guest's TSC be ``value`` when the host's (scaled) is ``host``."""
        offset = ctypes.c_uint64(value - host)
        row = uapi.DEVICE_ATTR.pack(0, *uapi.VCPU_TSC_OFFSET, ctypes.addressof(offset))
        try:
            call(self._fd, Call.SET_DEVICE_ATTR, bytearray(row))
        except EngineError:  # KVM is too old to be told exactly
            self.set_msr(_MSR_TSC, value)

    def translate(self, address: int) -> int | None:
        """The guest-physical address of a virtual one, as the guest's page tables have it now."""
        buffer = bytearray(uapi.TRANSLATION.pack(address, 0, 0, 0, 0))
        call(self._fd, Call.TRANSLATE, buffer)
        _, physical, valid, _, _ = uapi.TRANSLATION.unpack(buffer)
        return physical if valid else None

    def close(self) -> None:
        """Let go of the descriptor. The page goes with this object and with what ``io`` and ``mmio`` gave out."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

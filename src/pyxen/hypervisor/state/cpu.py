"""A VCPU's state out of KVM, and into a fresh VCPU of KVM's.

The order in which it is set matters: LAPIC after sregs, which say whether it is in x2APIC mode; MSRs after the LAPIC,
for the deadline of its timer; events last, as others may add some.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Final

from pyxen.errors import Unsupported
from pyxen.hypervisor.kvm import CpuidEntry, KvmVcpu
from pyxen.hypervisor.kvm.uapi import Call, MpState, Register
from pyxen.hypervisor.state.sections import damaged
from pyxen.hypervisor.state.words import Cpu

MSR_TSC: Final = 0x10
XSAVE_SIZE: Final = 4096
_COUNT: Final = 4  # struct kvm_xcrs: nr_xcrs
_SET_ELSEWHERE: Final = frozenset({MSR_TSC, 0x11, 0x12, *range(0x4B564D00, 0x4B564D10), *range(0x40000000, 0x40000200)})
"""The TSC, KVM's own clock and features and Hyper-V's, none of which a guest of Xen has."""
_MEMORY_TYPES: Final = (0x250, 0x258, 0x259, *range(0x268, 0x270), *range(0x200, 0x210), 0x2FF)
"""MTRRs: older KVMs leave them out of their list."""
_FEATURES: Final = ((1, 0), (7, 0), (7, 1), (0xD, 0), (0xD, 1), (0x80000001, 0), (0x80000007, 0), (0x80000008, 0))
"""Leaves of CPUID whose bits are features, and in which registers."""
_REGISTERS: Final = {
    (1, 0): ("ecx", "edx"),
    (7, 0): ("ebx", "ecx", "edx"),
    (7, 1): ("eax",),
    (0xD, 0): ("eax", "edx"),
    (0xD, 1): ("eax",),
    (0x80000001, 0): ("ecx", "edx"),
    (0x80000007, 0): ("edx",),
    (0x80000008, 0): ("ebx",),
}
_OURS: Final = {(1, 0, "ecx"): 1 << 31 | 1 << 21 | 1 << 27, (1, 0, "edx"): 1 << 28, (7, 0, "ecx"): 1 << 4}
"""Bits that don't come from the host: a hypervisor, x2APIC, several cores; and what the guest has switched on."""


def wanted_msrs(known: Iterable[int]) -> list[int]:
    """The MSRs to save, of those that this KVM knows."""
    return [*(index for index in dict.fromkeys((*known, *_MEMORY_TYPES)) if index not in _SET_ELSEWHERE)]


def capture(
    kvm: KvmVcpu, index: int, *, up: bool, held: bool, cpuid: Sequence[CpuidEntry], msrs: Sequence[int], xsave: int,
    tsc: int, returns: int | None,
) -> Cpu:  # fmt: skip
    """The state of a VCPU that stands still. ``returns``: what its hypercall is to give, if not what KVM has."""
    regs = kvm.get(Call.GET_REGS)
    if returns is not None:
        struct.pack_into("<Q", regs, 8 * Register.RAX, returns)
    return Cpu(
        index=index,
        up=up,
        held=held,
        cpuid=[(e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx) for e in cpuid],
        regs=bytes(regs),
        sregs=bytes(kvm.get(Call.GET_SREGS)),
        xsave=bytes(kvm.get(Call.GET_XSAVE) if xsave <= XSAVE_SIZE else kvm.get(Call.GET_XSAVE2, xsave)),
        xcrs=bytes(kvm.get(Call.GET_XCRS)),
        debug=bytes(kvm.get(Call.GET_DEBUGREGS)),
        lapic=bytes(kvm.get(Call.GET_LAPIC)),
        events=bytes(kvm.get(Call.GET_VCPU_EVENTS)),
        mp_state=kvm.mp_state(),
        msrs=kvm.get_msrs(msrs),
        tsc=tsc,
    )


def restore(kvm: KvmVcpu, cpu: Cpu) -> None:
    """Set all but CPUID and TSC. Raises InvalidRequest, and EngineError where KVM refuses."""
    if cpu.mp_state not in MpState.__members__.values():
        raise damaged(f"VCPU {cpu.index} is in an unknown state")
    kvm.put(Call.SET_REGS, _sized(cpu.regs, Call.SET_REGS))
    # As after an exit: what interrupts it before its first one looks there.
    kvm.regs[:] = memoryview(cpu.regs).cast("Q")
    kvm.put(Call.SET_SREGS, _sized(cpu.sregs, Call.SET_SREGS))
    if len(cpu.xsave) < XSAVE_SIZE or len(cpu.xsave) % 64:
        raise damaged(f"VCPU {cpu.index} has registers of {len(cpu.xsave)} bytes")
    kvm.put(Call.SET_XSAVE, cpu.xsave)
    if any(_sized(cpu.xcrs, Call.SET_XCRS)[:_COUNT]):  # none of them where the processor has no XSAVE
        kvm.put(Call.SET_XCRS, cpu.xcrs)
    kvm.put(Call.SET_DEBUGREGS, _sized(cpu.debug, Call.SET_DEBUGREGS))
    kvm.put(Call.SET_LAPIC, _sized(cpu.lapic, Call.SET_LAPIC))
    _restore_msrs(kvm, cpu)
    kvm.put(Call.SET_VCPU_EVENTS, _sized(cpu.events, Call.SET_VCPU_EVENTS))
    kvm.set_mp_state(MpState(cpu.mp_state))


def _restore_msrs(kvm: KvmVcpu, cpu: Cpu) -> None:
    # Only what differs from a fresh VCPU: KVM lists some that it lets nobody set.
    fresh = dict(kvm.get_msrs([index for index, _ in cpu.msrs]))
    for index, value in cpu.msrs:
        if fresh.get(index) != value and index not in _SET_ELSEWHERE:
            kvm.set_msr(index, value)


def check_features(cpu: Cpu, supported: Sequence[CpuidEntry]) -> None:
    """Raises Unsupported where the VCPU was shown features that this host hasn't got."""
    here = {(entry.function, entry.index): entry for entry in supported}
    missing = []
    for row in cpu.cpuid:
        entry = CpuidEntry(*row)
        place = (entry.function, entry.index)
        for name in _REGISTERS.get(place, ()):
            there = getattr(here[place], name) if place in here else 0
            if bits := getattr(entry, name) & ~there & ~_OURS.get((*place, name), 0):
                missing.append(f"CPUID {place[0]:#x}.{place[1]} {name.upper()} {bits:#x}")
    if missing:
        raise Unsupported(
            f"this host's processor lacks features that the guest was shown: {', '.join(missing)}",
            hint="Restore it on a host with the same kind of processor.",
        )


def entries(cpu: Cpu) -> list[CpuidEntry]:
    return [CpuidEntry(*row) for row in cpu.cpuid]


def _sized(data: bytes, call: Call) -> bytes:
    if len(data) != call.size:
        raise damaged(f"{call.name} takes {call.size} bytes, not {len(data)}")
    return data

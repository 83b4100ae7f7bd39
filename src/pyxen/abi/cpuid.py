"""Xen's CPUID leaves: xen/include/public/arch-x86/cpuid.h."""

from __future__ import annotations

from typing import Final, NamedTuple

BASE: Final = 0x40000000
LEAVES: Final = 6
SIGNATURE: Final = (0x566E6558, 0x65584D4D, 0x4D4D566E)
"""EBX, ECX, EDX of the first leaf: "XenVMMXenVMM"."""
HYPERCALL_MSR: Final = 0x40000000
VERSION: Final = (4, 17)
"""The Xen whose interface this is."""

HVM_VCPU_ID_PRESENT: Final = 1 << 3
HVM_DOMID_PRESENT: Final = 1 << 4
HVM_UPCALL_VECTOR: Final = 1 << 6

TSC_RELIABLE: Final = 1 << 1
TSC_RDTSCP: Final = 1 << 2


class Leaf(NamedTuple):
    """One entry for KVM_SET_CPUID2."""

    function: int
    subleaf: int
    eax: int
    ebx: int
    ecx: int
    edx: int


def leaves(domid: int, vcpu: int, tsc_khz: int, mul: int, shift: int) -> list[Leaf]:
    """Xen's leaves for one VCPU. ``mul`` and ``shift`` are the PV clock's."""
    low = 0xFFFFFFFF
    return [
        Leaf(BASE, 0, BASE + LEAVES - 1, *SIGNATURE),
        Leaf(BASE + 1, 0, VERSION[0] << 16 | VERSION[1], 0, 0, 0),
        Leaf(BASE + 2, 0, 1, HYPERCALL_MSR, 0, 0),
        Leaf(BASE + 3, 0, TSC_RELIABLE | TSC_RDTSCP, 0, tsc_khz, 0),
        Leaf(BASE + 3, 1, 0, 0, mul, shift & low),
        Leaf(BASE + 3, 2, tsc_khz, 0, 0, 0),
        Leaf(BASE + 4, 0, HVM_VCPU_ID_PRESENT | HVM_DOMID_PRESENT | HVM_UPCALL_VECTOR, vcpu, domid, 0),
        Leaf(BASE + 5, 0, 0, 0, 0, 0),
    ]

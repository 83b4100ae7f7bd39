"""What CPUID tells a domain's VCPU: the host's features as KVM offers them, one socket of one-thread cores, and Xen.

Layouts: the processor manuals; Xen's own leaves are abi.cpuid's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from pyxen.abi import cpuid as abi
from pyxen.hypervisor.kvm import CpuidEntry
from pyxen.hypervisor.kvm.uapi import CPUID_INDEX_COUNTS

_HYPERVISOR, _X2APIC, _VMX, _HTT = 1 << 31, 1 << 21, 1 << 5, 1 << 28
_SVM: Final = 1 << 2
_DROPPED: Final = frozenset({0x1F, 0x12, 0x14, 0x8000000A, 0x8000001D})
"""Die topology, SGX, processor trace, SVM's details, and AMD's cache topology, which would contradict ours."""
_TOPOLOGY: Final = 0xB
_LEVEL_THREAD, _LEVEL_CORE = 1 << 8, 2 << 8


def leaves(supported: Iterable[CpuidEntry], vcpu: int, vcpus: int, *, domid: int, tsc_khz: int) -> list[CpuidEntry]:
    """All leaves of VCPU number ``vcpu`` of ``vcpus``, whose APIC id is its number."""
    kept = [
        _adapted(entry, vcpu, vcpus)
        for entry in supported
        if entry.function not in _DROPPED and entry.function != _TOPOLOGY and entry.function >> 28 != 4
    ]
    return [*kept, *_topology(vcpu, vcpus), *xen_leaves(vcpu, domid, tsc_khz)]


def xen_leaves(vcpu: int, domid: int, tsc_khz: int) -> list[CpuidEntry]:
    """The leaves by which a kernel finds out that it runs on Xen."""
    shift, mul = tsc_scale(tsc_khz)
    found = abi.leaves(domid, vcpu, tsc_khz, mul, shift)
    indexed = {leaf.function for leaf in found if leaf[1]}
    return [
        CpuidEntry(leaf[0], leaf[1], CPUID_INDEX_COUNTS if leaf.function in indexed else 0, *leaf[2:]) for leaf in found
    ]


def tsc_scale(tsc_khz: int) -> tuple[int, int]:
    """(shift, multiplier) that make nanoseconds of ticks: ``(ticks << shift) * multiplier >> 32``."""
    shift = 0
    while (ticks := (tsc_khz * 1000 << shift) if shift >= 0 else tsc_khz * 1000 >> -shift) > 2_000_000_000:
        shift -= 1
    while ticks <= 1_000_000_000:
        shift += 1
        ticks = tsc_khz * 1000 << shift
    return shift, (10**9 << 32) // ticks


def _adapted(entry: CpuidEntry, vcpu: int, vcpus: int) -> CpuidEntry:
    cores = min(vcpus, 255)
    match entry.function:
        case 1:
            ebx = entry.ebx & 0xFFFF | cores << 16 | (vcpu & 0xFF) << 24
            ecx = (entry.ecx | _HYPERVISOR | _X2APIC) & ~_VMX
            return replace(entry, ebx=ebx, ecx=ecx, edx=entry.edx | _HTT if vcpus > 1 else entry.edx & ~_HTT)
        case 4 if entry.eax & 0x1F:
            # Each core has its own caches.
            return replace(entry, eax=entry.eax & 0x3FFF | (min(vcpus, 64) - 1) << 26)
        case 0x80000001:
            return replace(entry, ecx=entry.ecx & ~_SVM)
        case 0x80000008:
            return replace(entry, ecx=(cores - 1 if vcpus > 1 else 0) | _width(vcpus) << 12)
        case 0x8000001E:
            return replace(entry, eax=vcpu, ebx=vcpu & 0xFF, ecx=0)
        case _:
            return entry


def _topology(vcpu: int, vcpus: int) -> list[CpuidEntry]:
    """Leaf 0xB: threads in a core (one), cores in the socket (all), end."""
    counts = CPUID_INDEX_COUNTS
    return [
        CpuidEntry(_TOPOLOGY, 0, counts, 0, 1, _LEVEL_THREAD, vcpu),
        CpuidEntry(_TOPOLOGY, 1, counts, _width(vcpus), vcpus, _LEVEL_CORE | 1, vcpu),
        CpuidEntry(_TOPOLOGY, 2, counts, 0, 0, 2, vcpu),
    ]


def _width(vcpus: int) -> int:
    """Bits that tell so many apart."""
    return (vcpus - 1).bit_length()

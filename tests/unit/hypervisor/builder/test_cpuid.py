"""What a VCPU is told about itself."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyxen.hypervisor.builder.cpuid import leaves, tsc_scale
from pyxen.hypervisor.kvm import CpuidEntry

_HOST = [
    CpuidEntry(0, 0, 0, 0xD, 1, 2, 3),
    CpuidEntry(1, 0, 0, 0x60FB1, 0x07_10_08_00, 1 << 5, 1 << 28),
    CpuidEntry(0xB, 0, 1, 1, 2, 0x100, 7),
    CpuidEntry(0x80000001, 0, 0, 0, 0, 1 << 2 | 1, 0),
    CpuidEntry(0x8000000A, 0, 0, 1, 2, 3, 4),
    CpuidEntry(0x40000000, 0, 0, 0x40000001, *struct.unpack("<III", b"KVMKVMKVM\0\0\0")),
]


def told(vcpu: int, vcpus: int) -> dict[tuple[int, int], CpuidEntry]:
    found = leaves(_HOST, vcpu, vcpus, domid=7, tsc_khz=2_000_000)
    result = {(entry.function, entry.index): entry for entry in found}
    assert len(result) == len(found)
    return result


def test_the_hypervisor_is_xen_and_not_kvm() -> None:
    found = told(3, 4)
    first = found[0x40000000, 0]
    assert struct.pack("<III", first.ebx, first.ecx, first.edx) == b"XenVMMXenVMM"
    assert first.eax >= 0x40000004
    assert found[1, 0].ecx >> 31 == 1
    identity = found[0x40000004, 0]
    assert (identity.eax, identity.ebx, identity.ecx) == (0x58, 3, 7)


def test_each_vcpu_has_its_own_apic_id_in_one_socket() -> None:
    found = told(3, 4)
    assert found[1, 0].ebx == 3 << 24 | 4 << 16 | 0x0800
    assert found[0xB, 0].edx == found[0xB, 1].edx == 3
    assert (found[0xB, 1].eax, found[0xB, 1].ebx) == (2, 4)


def test_virtualization_is_not_offered() -> None:
    found = told(0, 1)
    assert not found[1, 0].ecx & 1 << 5
    assert found[0x80000001, 0].ecx == 1
    assert (0x8000000A, 0) not in found
    assert not found[1, 0].edx & 1 << 28  # a single VCPU has no siblings


@given(st.integers(100_000, 10_000_000))
def test_the_scale_makes_nanoseconds_of_ticks(tsc_khz: int) -> None:
    shift, mul = tsc_scale(tsc_khz)
    assert 1 << 31 <= mul < 1 << 32
    ticks = tsc_khz * 1000 * 3600  # an hour's
    ns = (ticks << shift if shift >= 0 else ticks >> -shift) * mul >> 32
    assert ns == pytest.approx(3600e9, rel=1e-8)

"""The VCPUs' time stamp counters, in KVM: read, and made to go on from where they were on another host.

A guest's counter is the host's, scaled, plus an offset. It is scaled where the guest comes from a host of another
frequency and this one's processor can (KVM_CAP_TSC_CONTROL); KVM does not tell the numbers that it scales by, so they
are worked out as it does (arch/x86/kvm/x86.c, set_tsc_khz) and compared with what the counter then shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

from pyxen.errors import Unsupported
from pyxen.hypervisor.clock import UNSCALED, Scale, host_tsc
from pyxen.hypervisor.kvm import CpuidEntry

_MSR_TSC: Final = 0x10
_VMX_BITS, _SVM_BITS = 48, 32
"""Of the factor, after its binary point."""
_SVM_VENDORS: Final = (b"Auth", b"Hygo")
_TOLERANCE: Final = 250
"""In a million: as far as KVM itself tells frequencies apart."""
_MASK: Final = (1 << 64) - 1


class Counter(Protocol):
    """What is used of kvm.KvmVcpu."""

    def tsc_khz(self) -> int: ...

    def set_tsc_khz(self, khz: int) -> None: ...

    def tsc_offset(self) -> int | None: ...

    def set_tsc(self, value: int, host: int) -> None: ...

    def get_msr(self, index: int) -> int: ...


class Going(NamedTuple):
    """How the guest's counters go on."""

    khz: int
    scale: Scale


def fraction_bits(supported: Sequence[CpuidEntry]) -> int:
    """How fine the factor is that a processor which shows these leaves scales by."""
    vendor = next((leaf.ebx for leaf in supported if leaf.function == 0), 0).to_bytes(4, "little")
    return _SVM_BITS if vendor in _SVM_VENDORS else _VMX_BITS


def check(khz: int, here: int, bits: int | None) -> None:
    """Raises Unsupported where a counter that ran at ``khz`` can't go on on a host whose own runs at ``here``.

    ``bits`` are those of its factor, None where it has none.
    """
    if bits is None and not _same(khz, here):
        raise Unsupported(
            f"the guest's time stamp counter ran at {khz} kHz, this host's runs at {here}",
            hint="Restore it on a host of the same frequency, or one whose processor can scale the counter.",
        )


def go_on(vcpus: Sequence[Counter], values: Sequence[int], host: int, khz: int, bits: int | None) -> Going:
    """Have the counters show ``values`` at the moment when the host's is ``host``, and run at ``khz`` from there.

    Raises Unsupported where that can't be.
    """
    here = vcpus[0].tsc_khz()
    check(khz, here, bits)
    if bits is None or _same(khz, here):
        for vcpu, value in zip(vcpus, values, strict=True):
            vcpu.set_tsc(value, host)
        return Going(here, UNSCALED)
    scale = Scale((khz << bits) // here, bits)
    for vcpu, value in zip(vcpus, values, strict=True):
        vcpu.set_tsc_khz(khz)
        vcpu.set_tsc(value, scale.of(host))
    if not _shows(vcpus[0], scale):
        raise Unsupported(
            f"this host's KVM scales a counter of {khz} kHz in an unknown way",
            hint="Restore it on a host of the same frequency.",
        )
    return Going(khz, scale)


def offsets(vcpus: Sequence[Counter]) -> list[int]:
    """For each VCPU its TSC less the host's (scaled), in ticks.

    KVM is asked for the very numbers; where it is too old for that, they are read within a microsecond or so, and
    VCPUs with one common TSC would be told that theirs differ: so the first one's stands for all.
    """
    exact = [vcpu.tsc_offset() for vcpu in vcpus]
    if None not in exact:
        return [offset for offset in exact if offset is not None]
    before = host_tsc()
    guest = vcpus[0].get_msr(_MSR_TSC)
    return [(guest - (before + host_tsc()) // 2) & _MASK] * len(vcpus)


def _shows(vcpu: Counter, scale: Scale) -> bool:
    offset = vcpu.tsc_offset()
    if offset is None:
        return False
    before, shown, after = host_tsc(), vcpu.get_msr(_MSR_TSC), host_tsc()
    return scale.of(before) <= (shown - offset) & _MASK <= scale.of(after)


def _same(khz: int, other: int) -> bool:
    return abs(khz - other) * 1_000_000 <= other * _TOLERANCE

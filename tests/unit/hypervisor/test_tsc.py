"""Time stamp counters on hosts of other frequencies: what KVM does with them, in plain Python."""

from __future__ import annotations

import pytest

from pyxen.errors import EngineError, Unsupported
from pyxen.hypervisor import tsc
from pyxen.hypervisor.clock import UNSCALED, GuestClock, host_tsc
from pyxen.hypervisor.kvm import CpuidEntry

_HERE = 2_596_122
_MASK = (1 << 64) - 1
_VALUES = [1 << 40, (1 << 40) + 7]


class Counter:
    """KVM's, as arch/x86/kvm/x86.c has it; ``bits`` is None where the processor doesn't scale."""

    def __init__(self, bits: int | None) -> None:
        self.bits = bits
        self.khz = _HERE
        self.offset = 0

    def tsc_khz(self) -> int:
        return self.khz

    def set_tsc_khz(self, khz: int) -> None:
        if self.bits is None:
            raise EngineError("KVM refused SET_TSC_KHZ")
        self.khz = khz

    def scaled(self, host: int) -> int:
        if self.khz == _HERE or self.bits is None:
            return host
        return host * ((self.khz << self.bits) // _HERE) >> self.bits

    def tsc_offset(self) -> int:
        return self.offset

    def set_tsc(self, value: int, host: int) -> None:
        self.offset = (value - host) & _MASK

    def get_msr(self, index: int) -> int:
        assert index == 0x10
        return (self.scaled(host_tsc()) + self.offset) & _MASK


@pytest.mark.parametrize("bits", [48, 32])
@pytest.mark.parametrize("khz", [1_800_000, 3_400_000])
def test_it_goes_on_at_the_frequency_that_it_had(bits: int, khz: int) -> None:
    vcpus = [Counter(bits), Counter(bits)]
    host = host_tsc()
    going = tsc.go_on(vcpus, _VALUES, host, khz, bits)
    assert going.khz == khz
    assert [vcpu.scaled(host) + vcpu.offset & _MASK for vcpu in vcpus] == _VALUES
    clock = GuestClock(going.khz, tsc.offsets(vcpus), since_ns=5, start=host, scale=going.scale)
    later = host + _HERE * 1000  # a second
    assert abs(clock.at(later) - 1_000_000_005) < 2000
    assert [clock.tsc(vcpu, later) for vcpu in (0, 1)] == [vcpu.scaled(later) + vcpu.offset & _MASK for vcpu in vcpus]
    numbers = clock.pvclock(1)
    ticks = (vcpus[1].scaled(later) + vcpus[1].offset - numbers.tsc_timestamp) & _MASK
    ticks = ticks << numbers.shift if numbers.shift >= 0 else ticks >> -numbers.shift
    assert numbers.system_time + (ticks * numbers.mul >> 32) == clock.at(later), "the guest's sum is ours"


def test_how_fine_the_factor_is_goes_by_the_vendor() -> None:
    def leaf(vendor: bytes) -> CpuidEntry:
        return CpuidEntry(0, 0, 0, 13, int.from_bytes(vendor[:4], "little"), 0, 0)

    assert tsc.fraction_bits([leaf(b"GenuineIntel")]) == 48
    assert tsc.fraction_bits([leaf(b"AuthenticAMD")]) == 32


def test_nearly_the_same_frequency_is_not_scaled() -> None:
    vcpus = [Counter(None), Counter(None)]
    host = host_tsc()
    assert tsc.go_on(vcpus, _VALUES, host, _HERE + 500, None) == (_HERE, UNSCALED)
    assert [host + vcpu.offset & _MASK for vcpu in vcpus] == _VALUES


def test_what_can_not_be_scaled_is_refused() -> None:
    with pytest.raises(Unsupported, match="ran at 3400000 kHz, this host's runs at 2596122"):
        tsc.go_on([Counter(None)], _VALUES[:1], host_tsc(), 3_400_000, None)


def test_a_factor_that_is_not_known_is_refused() -> None:
    vcpu = Counter(20)
    vcpu.scaled = lambda host: host * 3  # type: ignore[method-assign]
    with pytest.raises(Unsupported, match="in an unknown way"):
        tsc.go_on([vcpu], _VALUES[:1], host_tsc(), 3_400_000, 48)

"""A VCPU's state out of one machine of KVM's and into another one, where it goes on."""

from __future__ import annotations

import msgspec
import pytest

from pyxen.errors import EngineError, InvalidRequest, Unsupported
from pyxen.hypervisor.clock import host_tsc
from pyxen.hypervisor.kvm import CpuidEntry, Kvm, KvmVcpu
from pyxen.hypervisor.kvm.uapi import Exit, MpState, Register
from pyxen.hypervisor.state import cpu as cpu_state
from pyxen.hypervisor.state.words import Cpu
from tests.unit.hypervisor.kvm.micro import Micro, micro_guest, needs_kvm

pytestmark = needs_kvm

_SYSENTER_CS = 0x174
_TSC = 0x10
_ONE = bytes.fromhex("0000000000000080ff3f")
# In real mode, with 32-bit operands: an MSR, the first OUT; what was left in EBX goes out by the second.
_CODE = """

 66b974010000 66b834120000 6631d2 0f30
 66bbefbeadde
 e680
 6689d8 66e780
 f4
"""


def _capture(kvm: KvmVcpu, returns: int | None = None) -> Cpu:
    device = Kvm()
    msrs = cpu_state.wanted_msrs(device.msr_indices())
    device.close()
    tsc = kvm.get_msr(_TSC)
    return cpu_state.capture(
        kvm, 0, up=True, held=False, cpuid=[], msrs=msrs, xsave=0, tsc=tsc, returns=returns
    )  # fmt: skip


def _to_the_first_out(guest: Micro) -> Cpu:
    assert guest.run() == Exit.IO
    guest.vcpu.settle()
    return _capture(guest.vcpu)


def _with_float(state: Cpu) -> Cpu:
    """With a number in ST0: real mode is emulated by some KVMs, which know no such instructions."""
    xsave = bytearray(state.xsave)
    xsave[32:42] = _ONE
    xsave[512] |= 1  # the x87's part is there
    return msgspec.structs.replace(state, xsave=bytes(xsave))


def test_a_vcpu_goes_on_in_another_machine() -> None:
    with micro_guest(_CODE, irqchip=True) as first:
        state = _with_float(_to_the_first_out(first))
        memory = bytes(first.memory.regions[0].data)
    with micro_guest("f4", irqchip=True) as second:
        second.memory.write(0, memory)
        cpu_state.restore(second.vcpu, state)
        again = _capture(second.vcpu)
        assert msgspec.structs.replace(again, tsc=0) == msgspec.structs.replace(state, tsc=0)
        assert dict(again.msrs)[_SYSENTER_CS] == 0x1234
        assert again.xsave[32:42] == _ONE
        assert second.run() == Exit.IO
        assert second.vcpu.io()[:3] == (1, 0x80, 4)
        assert bytes(second.vcpu.io()[3]) == bytes.fromhex("efbeadde")


def test_what_a_hypercall_is_to_return_can_be_put_into_the_state() -> None:
    with micro_guest(_CODE, irqchip=True) as guest:
        _to_the_first_out(guest)
        state = _capture(guest.vcpu, returns=0)
        cpu_state.restore(guest.vcpu, state)
        assert guest.vcpu.get_regs()[Register.RAX] == 0
        assert guest.vcpu.get_regs()[Register.RBX] == 0xDEADBEEF


def test_the_tsc_goes_on_from_where_it_was() -> None:
    with micro_guest(_CODE) as guest:
        guest.vcpu.set_tsc(1 << 50, host_tsc())
        if guest.vcpu.tsc_offset() == 0:
            pytest.skip("this KVM shows its guests the host's TSC, whatever it is told")
        assert 1 << 50 <= guest.vcpu.get_msr(_TSC) < (1 << 50) + (1 << 40)


def test_structures_of_another_size_are_refused() -> None:
    with micro_guest(_CODE, irqchip=True) as guest:
        state = _to_the_first_out(guest)
        for name in ("regs", "sregs", "xsave", "xcrs", "debug", "lapic", "events"):
            with pytest.raises(InvalidRequest, match="damaged"):
                cpu_state.restore(guest.vcpu, msgspec.structs.replace(state, **{name: b"\0" * 17}))
        with pytest.raises(InvalidRequest, match="damaged"):
            cpu_state.restore(guest.vcpu, msgspec.structs.replace(state, mp_state=99))


def test_registers_that_no_processor_has_are_refused_by_kvm() -> None:
    with micro_guest(_CODE, irqchip=True) as guest:
        state = _to_the_first_out(guest)
        with pytest.raises(EngineError, match="KVM"):
            cpu_state.restore(guest.vcpu, msgspec.structs.replace(state, msrs=[(0xDEAD, 5)]))


def test_halted_stays_halted() -> None:
    with micro_guest(_CODE, irqchip=True) as guest:
        state = msgspec.structs.replace(_to_the_first_out(guest), mp_state=MpState.HALTED)
        cpu_state.restore(guest.vcpu, state)
        assert guest.vcpu.mp_state() == MpState.HALTED


def test_features_that_are_not_here_are_named() -> None:
    shown = CpuidEntry(7, 0, 1, 0, 0x100 | 1 << 16, 0, 0)
    here = CpuidEntry(7, 0, 1, 0, 0x100, 0, 0)
    with micro_guest(_CODE, irqchip=True) as guest:
        state = _to_the_first_out(guest)
    row = (shown.function, shown.index, shown.flags, shown.eax, shown.ebx, shown.ecx, shown.edx)
    state = msgspec.structs.replace(state, cpuid=[row])
    cpu_state.check_features(state, [shown])
    with pytest.raises(Unsupported, match=r"CPUID 0x7\.0 EBX 0x10000$"):
        cpu_state.check_features(state, [here])

"""The binding, on this machine's KVM: guests of a few instructions, which any KVM can run."""

from __future__ import annotations

import mmap
import threading
from pathlib import Path

import pytest

from pyxen.errors import EngineError, Unsupported
from pyxen.hypervisor.kvm import Kvm
from pyxen.hypervisor.kvm.uapi import Exit, MpState, Register
from tests.unit.hypervisor.kvm.micro import CODE, micro_guest, needs_kvm

pytestmark = needs_kvm


def test_an_out_exits_and_the_guest_goes_on_with_what_is_put_into_rax() -> None:
    #    mov ax, 0x1234; out 0x80, ax; mov [0x2000], ax; hlt
    with micro_guest("b83412 e780 a30020 f4") as guest:
        assert guest.run() == Exit.IO
        direction, port, size, data = guest.vcpu.io()
        assert (direction, port, size, bytes(data)) == (1, 0x80, 2, b"\x34\x12")
        assert guest.vcpu.regs[Register.RAX] == 0x1234
        guest.vcpu.regs[Register.RAX] = 0xBEEF
        guest.vcpu.dirty()
        assert guest.run() == Exit.HLT
        assert guest.memory.u16(0x2000) == 0xBEEF


def test_an_in_gets_its_data() -> None:
    #    in al, 0x71; mov [0x2000], al; hlt
    with micro_guest("e471 a20020 f4") as guest:
        assert guest.run() == Exit.IO
        direction, port, _, data = guest.vcpu.io()
        assert (direction, port) == (0, 0x71)
        data[0] = 0x5A
        assert guest.run() == Exit.HLT
        assert guest.memory.u8(0x2000) == 0x5A


def test_settle_finishes_an_in_without_running_on() -> None:
    #    in al, 0x71; hlt
    with micro_guest("e471 f4") as guest:
        guest.run()
        guest.vcpu.io()[3][0] = 0x77
        guest.vcpu.settle()
        regs = guest.vcpu.get_regs()
        assert regs[Register.RAX] & 0xFF == 0x77
        assert regs[Register.RIP] == CODE + 2


def test_memory_that_is_not_there_exits() -> None:
    #    mov ax, 0xf000; mov ds, ax; mov byte [0x123], 7; mov al, [0x456]; mov [ss:0x2000], al; hlt
    with micro_guest("b800f0 8ed8 c606230107 a05604 36a20020 f4") as guest:
        assert guest.run() == Exit.MMIO
        is_write, address, data = guest.vcpu.mmio()
        assert (is_write, address, bytes(data)) == (True, 0xF0123, b"\x07")
        assert guest.run() == Exit.MMIO
        is_write, address, data = guest.vcpu.mmio()
        assert (is_write, address) == (False, 0xF0456)
        data[0] = 0x99
        assert guest.run() == Exit.HLT
        assert guest.memory.u8(0x2000) == 0x99


def test_unknown_msrs_exit_and_are_answered() -> None:
    #    mov ecx, 0x4badbabe; rdmsr; mov [0x2000], eax; wrmsr; hlt
    with micro_guest("66b9bebaad4b 0f32 66a30020 0f30 f4") as guest:
        assert guest.run() == Exit.RDMSR
        assert guest.vcpu.msr()[0] == 0x4BADBABE
        guest.vcpu.answer_msr(0x1_23456789)
        assert guest.run() == Exit.WRMSR
        assert guest.memory.u32(0x2000) == 0x23456789
        assert guest.vcpu.msr() == (0x4BADBABE, 0x1_23456789)
        guest.vcpu.answer_msr(0)
        assert guest.run() == Exit.HLT


def test_a_kick_before_or_in_the_middle_of_a_run_ends_it() -> None:
    #    jmp $
    with micro_guest("ebfe") as guest:
        guest.vcpu.kick(threading.get_ident())
        assert guest.vcpu.run() == Exit.INTR
        guest.vcpu.unkick()
        kicker = threading.Timer(0.02, guest.vcpu.kick, [threading.get_ident()])
        kicker.start()
        assert guest.vcpu.run() == Exit.INTR
        kicker.join()


def test_memory_comes_and_goes() -> None:
    #    mov ax, 0x2000; mov ds, ax; mov al, [0]; out 0x80, al; jmp -7
    with micro_guest("b80020 8ed8 a00000 e680 ebf9") as guest:
        slot = guest.vm.add_memory(guest.memory.add(0x20000, mmap.mmap(-1, 8192)))
        guest.memory.put_u8(0x20000, 0x42)
        assert guest.run() == Exit.IO
        assert bytes(guest.vcpu.io()[3]) == b"\x42"
        guest.vm.remove_memory(slot)
        assert guest.run() == Exit.MMIO


def test_a_second_vcpu_waits_to_be_started() -> None:
    with micro_guest("f4", irqchip=True) as guest:
        assert guest.vcpu.mp_state() == MpState.RUNNABLE
        other = guest.vm.create_vcpu(1)
        assert other.mp_state() == MpState.UNINITIALIZED
        assert other.regs.nbytes == 144
        other.close()


def test_msrs_are_read_back() -> None:
    with micro_guest("f4") as guest:
        guest.vcpu.set_msr(0xC0000102, 0x1234)  # KERNEL_GS_BASE
        assert guest.vcpu.get_msr(0xC0000102) == 0x1234
        assert guest.vcpu.tsc_khz() > 0


def test_refusals_are_in_kvms_name() -> None:
    with micro_guest("f4") as guest, pytest.raises(EngineError, match="KVM refused CREATE_VCPU: File exists"):
        guest.vm.create_vcpu(0)


def test_a_host_without_the_device_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="can't be opened: No such file"):
        Kvm(tmp_path / "kvm")


def test_the_cpu_has_a_vendor() -> None:
    kvm = Kvm()
    entries = {entry.function: entry for entry in kvm.supported_cpuid()}
    kvm.close()
    assert entries[0].ebx

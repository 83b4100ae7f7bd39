"""A guest of a few bytes in real mode, to see what KVM does with it."""

from __future__ import annotations

import mmap
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import pytest

from pyxen.hypervisor.kvm import Kvm, KvmVcpu, Vm
from pyxen.hypervisor.kvm.uapi import Capability, Exit, Register
from pyxen.hypervisor.kvm.vcpu import KICK
from pyxen.hypervisor.memory import GuestMemory

needs_kvm = pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK), reason="/dev/kvm can't be opened here")
CODE = 0x1000


@dataclass
class Micro:
    vm: Vm
    vcpu: KvmVcpu
    memory: GuestMemory

    def run(self) -> int:
        """Run to the next exit that is not about a signal."""
        while (reason := self.vcpu.run()) == Exit.INTR:
            pass
        return reason


@contextmanager
def micro_guest(code: str, *, irqchip: bool = False) -> Iterator[Micro]:
    """A machine of 64 KiB with one VCPU at the first byte of ``code`` (hexadecimal)."""
    before = signal.signal(KICK, _ignore)
    kvm = Kvm()
    vm = kvm.create_vm()
    vm.enable(Capability.USER_SPACE_MSR, 2)
    if irqchip:
        vm.create_irqchip()
    memory = GuestMemory([(0, mmap.mmap(-1, 0x10000, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))])
    memory.write(CODE, bytes.fromhex(code))
    vm.add_memory(memory.regions[0])
    vcpu = vm.create_vcpu(0)
    sregs = vcpu.get_sregs()
    sregs.set_segment("cs", sregs.segment("ds"))
    vcpu.set_sregs(sregs)
    vcpu.set_regs({Register.RIP: CODE, Register.RFLAGS: 2, Register.RSP: 0x8000})
    try:
        yield Micro(vm, vcpu, memory)
    finally:
        vcpu.close()
        vm.close()
        kvm.close()
        signal.signal(KICK, before)


def _ignore(number: int, frame: FrameType | None) -> None:
    pass

"""A typed binding of as much of /dev/kvm as the hypervisor uses."""

from pyxen.hypervisor.kvm.cpuid import CpuidEntry
from pyxen.hypervisor.kvm.device import Kvm
from pyxen.hypervisor.kvm.registers import Segment, SpecialRegisters
from pyxen.hypervisor.kvm.vcpu import KvmVcpu
from pyxen.hypervisor.kvm.vm import Vm

__all__ = ["CpuidEntry", "Kvm", "KvmVcpu", "Segment", "SpecialRegisters", "Vm"]

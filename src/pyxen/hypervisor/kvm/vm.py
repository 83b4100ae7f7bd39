"""A virtual machine of KVM's: memory slots, interrupt controllers, VCPUs."""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct

from pyxen.hypervisor.kvm import uapi
from pyxen.hypervisor.kvm.ioctl import call, call_with_address
from pyxen.hypervisor.kvm.uapi import Call, Capability
from pyxen.hypervisor.kvm.vcpu import KvmVcpu
from pyxen.hypervisor.memory import PAGE_SHIFT, Region

_MSI_ADDRESS = 0xFEE00000
_SIGNAL_MSI = Call.SIGNAL_MSI.value


class Vm:
    """``fd`` is the descriptor that CREATE_VM gave, ``run_size`` the bytes of a VCPU's ``struct kvm_run``."""

    def __init__(self, fd: int, run_size: int) -> None:
        self._fd = fd
        self._run_size = run_size
        self._slots: dict[int, Region] = {}

    def add_memory(self, region: Region) -> int:
        """Show ``region`` to the guest at its address; returns the slot's number. Its data must stay alive."""
        slot = next(number for number in range(len(self._slots) + 1) if number not in self._slots)
        self._set_slot(slot, region, region.end - region.start)
        self._slots[slot] = region
        return slot

    def remove_memory(self, slot: int) -> None:
        """Take a slot away again."""
        self._set_slot(slot, self._slots.pop(slot), 0)

    def log_writes(self, region: Region, on: bool) -> None:
        """Begin to note which pages of ``region`` the guest writes, or stop. It must have been added."""
        slot = self._slot_of(region)
        self._set_slot(slot, region, region.end - region.start, uapi.LOG_DIRTY_PAGES if on else 0)

    def written(self, region: Region) -> int:
        """The pages of ``region`` that the guest has written since the last call, or since ``log_writes``.

        A number with a bit for each page, the first one's lowest.
        """
        pages = region.end - region.start >> PAGE_SHIFT
        bitmap = (ctypes.c_char * (-(-pages // 64) * 8))()
        row = uapi.DIRTY_LOG.pack(self._slot_of(region), ctypes.addressof(bitmap))
        call(self._fd, Call.GET_DIRTY_LOG, bytearray(row))
        return int.from_bytes(bitmap.raw, "little") & (1 << pages) - 1

    def _slot_of(self, region: Region) -> int:
        return next(slot for slot, each in self._slots.items() if each is region)

    def _set_slot(self, slot: int, region: Region, size: int, flags: int = 0) -> None:
        address = ctypes.addressof(ctypes.c_char.from_buffer(region.data))
        row = uapi.MEMORY_REGION.pack(slot, flags, region.start, size, address)
        call(self._fd, Call.SET_USER_MEMORY_REGION, bytearray(row))

    def enable(self, capability: Capability, argument: int = 0) -> None:
        """Switch a capability on."""
        call(self._fd, Call.ENABLE_CAP, bytearray(uapi.ENABLE_CAP.pack(capability, 0, argument, 0, 0, 0)))

    def create_irqchip(self) -> None:
        """Local APICs (and a PIC and an I/O APIC, which go unused) in the kernel. Before any VCPU."""
        call(self._fd, Call.CREATE_IRQCHIP)

    def place_intel_pages(self, address: int) -> None:
        """Four pages, outside of the guest's memory, that older Intel processors need."""
        call(self._fd, Call.SET_IDENTITY_MAP_ADDR, bytearray(struct.pack("<Q", address)))
        call_with_address(self._fd, Call.SET_TSS_ADDR, address + 4096)

    def create_vcpu(self, apic_id: int) -> KvmVcpu:
        return KvmVcpu(call(self._fd, Call.CREATE_VCPU, apic_id), self._run_size)

    def signal_msi(self, apic_id: int, vector: int) -> bool:
        """Raise ``vector``, edge-triggered, in a local APIC; False if that is switched off. From any thread.

        Bits 8 to 10 of ``vector`` are the delivery mode: 0 as said, 4 a non-maskable interrupt.
        """
        message = uapi.MSI.pack(_MSI_ADDRESS | (apic_id & 0xFF) << 12, apic_id & ~0xFF, vector, 0, 0)
        delivered: int = fcntl.ioctl(self._fd, _SIGNAL_MSI, bytearray(message))
        return delivered > 0

    def close(self) -> None:
        """KVM frees the machine when the last of its VCPUs is closed too."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

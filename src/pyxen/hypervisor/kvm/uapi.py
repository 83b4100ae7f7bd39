"""What is used of Linux' KVM interface on x86: numbers and layouts from linux/kvm.h and asm/kvm.h."""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final

API_VERSION: Final = 12


class Call(IntEnum):
    """ioctl numbers; the size of the argument is in bits 16 to 29."""

    GET_API_VERSION = 0xAE00
    CREATE_VM = 0xAE01
    CHECK_EXTENSION = 0xAE03
    GET_MSR_INDEX_LIST = 0xC004AE02
    GET_VCPU_MMAP_SIZE = 0xAE04
    GET_SUPPORTED_CPUID = 0xC008AE05

    CREATE_VCPU = 0xAE41
    SET_USER_MEMORY_REGION = 0x4020AE46
    SET_TSS_ADDR = 0xAE47
    GET_DIRTY_LOG = 0x4010AE42
    SET_IDENTITY_MAP_ADDR = 0x4008AE48
    CREATE_IRQCHIP = 0xAE60
    ENABLE_CAP = 0x4068AEA3
    SIGNAL_MSI = 0x4020AEA5

    RUN = 0xAE80
    GET_REGS = 0x8090AE81
    SET_REGS = 0x4090AE82
    GET_SREGS = 0x8138AE83
    SET_SREGS = 0x4138AE84
    TRANSLATE = 0xC018AE85
    GET_MSRS = 0xC008AE88
    SET_MSRS = 0x4008AE89
    SET_CPUID2 = 0x4008AE90
    GET_MP_STATE = 0x8004AE98
    SET_MP_STATE = 0x4004AE99
    NMI = 0xAE9A
    GET_LAPIC = 0x8400AE8E
    SET_LAPIC = 0x4400AE8F
    GET_VCPU_EVENTS = 0x8040AE9F
    SET_VCPU_EVENTS = 0x4040AEA0
    GET_DEBUGREGS = 0x8080AEA1
    SET_DEBUGREGS = 0x4080AEA2
    SET_TSC_KHZ = 0xAEA2
    GET_TSC_KHZ = 0xAEA3
    GET_XSAVE = 0x9000AEA4
    SET_XSAVE = 0x5000AEA5
    GET_XCRS = 0x8188AEA6
    SET_XCRS = 0x4188AEA7
    GET_XSAVE2 = 0x9000AECF
    SET_DEVICE_ATTR = 0x4018AEE1
    GET_DEVICE_ATTR = 0x4018AEE2

    @property
    def size(self) -> int:
        """Of the argument, in bytes."""
        return self.value >> 16 & 0x3FFF


class Capability(IntEnum):
    """Arguments of CHECK_EXTENSION and ENABLE_CAP."""

    TSC_CONTROL = 60
    MAX_VCPUS = 66
    SYNC_REGS = 74
    X2APIC_API = 129
    IMMEDIATE_EXIT = 136
    USER_SPACE_MSR = 188
    XSAVE2 = 208


SYNC_REGS: Final = 1
SYNC_SREGS: Final = 2
SYNC_EVENTS: Final = 4
X2APIC_32_BIT_IDS: Final = 3
"""Whole x2APIC ids in MSIs, and no broadcast quirk."""
MSR_EXIT_INVALID: Final = 1
MSR_EXIT_UNKNOWN: Final = 2
VCPU_TSC_OFFSET: Final = (0, 0)
"""Group and attribute of a VCPU's TSC offset, for GET_DEVICE_ATTR."""
CPUID_INDEX_COUNTS: Final = 1


class Exit(IntEnum):
    """Why KVM_RUN came back: ``kvm_run.exit_reason``. Others than these end a domain."""

    IO = 2
    HLT = 5
    MMIO = 6
    SHUTDOWN = 8
    FAIL_ENTRY = 9
    INTR = 10
    INTERNAL_ERROR = 17
    SYSTEM_EVENT = 24
    RDMSR = 29
    WRMSR = 30


class MpState(IntEnum):
    """``struct kvm_mp_state``."""

    RUNNABLE = 0
    UNINITIALIZED = 1
    INIT_RECEIVED = 2
    HALTED = 3
    SIPI_RECEIVED = 4


class Register(IntEnum):
    """Places in ``struct kvm_regs``, an array of 18 u64."""

    RAX = 0
    RBX = 1
    RCX = 2
    RDX = 3
    RSI = 4
    RDI = 5
    RSP = 6
    RBP = 7
    R8 = 8
    R9 = 9
    R10 = 10
    R11 = 11
    R12 = 12
    R13 = 13
    R14 = 14
    R15 = 15
    RIP = 16
    RFLAGS = 17


REGS_SIZE: Final = 144
SREGS_SIZE: Final = 312
EVENTS_SIZE: Final = 64

# struct kvm_run
RUN_IMMEDIATE_EXIT: Final = 1
RUN_EXIT_REASON: Final = 8
RUN_UNION: Final = 32
RUN_VALID_REGS: Final = 288
RUN_DIRTY_REGS: Final = 296
RUN_REGS: Final = 304
RUN_SREGS: Final = RUN_REGS + REGS_SIZE
RUN_EVENTS: Final = RUN_SREGS + SREGS_SIZE

IO_EXIT: Final = struct.Struct("<BBHIQ")  # direction (1: out), size, port, count, offset of the data
MMIO_EXIT: Final = struct.Struct("<Q8sIB")  # address, data, length, is it a write?
MSR_EXIT: Final = struct.Struct("<B7xIIQ")  # error, reason, index, data
ERROR_EXIT: Final = struct.Struct("<IIQB15s")  # suberror, ndata, flags, instruction's size and bytes
FAILED_EXIT: Final = struct.Struct("<Q")

MEMORY_REGION: Final = struct.Struct("<IIQQQ")  # slot, flags, gpa, size, address
LOG_DIRTY_PAGES: Final = 1
DIRTY_LOG: Final = struct.Struct("<I4xQ")  # slot, address of the bitmap
MSI: Final = struct.Struct("<IIIII12x")  # address low, high, data, flags, device id
ENABLE_CAP: Final = struct.Struct("<IIQQQQ64x")  # capability, flags, arguments
MSR: Final = struct.Struct("<IIQ")  # index, reserved, data
TRANSLATION: Final = struct.Struct("<QQBBB5x")  # linear, physical, valid, writeable, usermode
DEVICE_ATTR: Final = struct.Struct("<IIQQ")  # flags, group, attribute, address of the value
CPUID_ENTRY: Final = struct.Struct("<7I12x")  # function, index, flags, eax, ebx, ecx, edx
SEGMENT: Final = struct.Struct("<QIHBBBBBBBBBx")
"""``struct kvm_segment``: base, limit, selector, type, present, dpl, db, s, l, g, avl, unusable."""
TABLE: Final = struct.Struct("<QH6x")  # struct kvm_dtable: base, limit

SREGS_SEGMENTS: Final = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")
SREGS_GDT: Final = 192
SREGS_IDT: Final = 208
SREGS_CR0: Final = 224
SREGS_CR2: Final = 232
SREGS_CR3: Final = 240
SREGS_CR4: Final = 248
SREGS_EFER: Final = 264
SREGS_APIC_BASE: Final = 272

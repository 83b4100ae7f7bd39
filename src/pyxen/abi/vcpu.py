"""vcpu_op: xen/include/public/vcpu.h and hvm/hvm_vcpu.h."""

from __future__ import annotations

from typing import Final, NamedTuple

from pyxen.abi.layout import I32, U8, U16, U32, U64, Layout

INITIALISE: Final = 0
UP: Final = 1
DOWN: Final = 2
IS_UP: Final = 3
GET_RUNSTATE_INFO: Final = 4
REGISTER_RUNSTATE_MEMORY_AREA: Final = 5
SET_PERIODIC_TIMER: Final = 6
STOP_PERIODIC_TIMER: Final = 7
SET_SINGLESHOT_TIMER: Final = 8
STOP_SINGLESHOT_TIMER: Final = 9
REGISTER_VCPU_INFO: Final = 10
SEND_NMI: Final = 11
GET_PHYSID: Final = 12
REGISTER_VCPU_TIME_MEMORY_AREA: Final = 13
REGISTER_RUNSTATE_PHYS_AREA: Final = 14
REGISTER_VCPU_TIME_PHYS_AREA: Final = 15

RUNSTATE_RUNNING: Final = 0
RUNSTATE_RUNNABLE: Final = 1
RUNSTATE_BLOCKED: Final = 2
RUNSTATE_OFFLINE: Final = 3

RUNSTATE_UPDATE: Final = 1 << 63
"""In ``entry_time`` while the area is being written, if the guest asked for it by vm_assist."""

PVCLOCK_TSC_STABLE: Final = 1
PVCLOCK_GUEST_STOPPED: Final = 2
"""Flags of vcpu_time_info (xen.h): all VCPUs' TSCs agree; the guest stood still, and clears that when it sees it."""

SINGLESHOT_FUTURE: Final = 1
"""A singleshot timer's flag: refuse a deadline that has passed."""


class SetPeriodicTimer(NamedTuple):
    period_ns: U64


class SetSingleshotTimer(NamedTuple):
    timeout_abs_ns: U64
    flags: U32


class RegisterVcpuInfo(NamedTuple):
    mfn: U64
    offset: U32
    reserved: U32


class RegisterArea(NamedTuple):
    """Both register_runstate_memory_area and register_vcpu_time_memory_area: a pointer in a union with a u64."""

    address: U64


class RunstateInfo(NamedTuple):
    state: I32
    entry_time: U64
    running: U64
    runnable: U64
    blocked: U64
    offline: U64


class VcpuTimeInfo(NamedTuple):
    """struct vcpu_time_info, 32 bytes in both layouts."""

    version: U32
    pad0: U32
    tsc_timestamp: U64
    system_time: U64
    tsc_to_system_mul: U32
    tsc_shift: U8
    flags: U8
    pad1: U16


class ContextHeader(NamedTuple):
    """The beginning of struct vcpu_hvm_context; the registers follow."""

    mode: U32
    pad: U32


class Context32(NamedTuple):
    """struct vcpu_hvm_x86_32: a VCPU that starts in 32-bit mode. Attributes are as in a VMCB, 12 bits."""

    eax: U32
    ecx: U32
    edx: U32
    ebx: U32
    esp: U32
    ebp: U32
    esi: U32
    edi: U32
    eip: U32
    eflags: U32
    cr0: U32
    cr3: U32
    cr4: U32
    pad1: U32
    efer: U64
    cs_base: U32
    ds_base: U32
    ss_base: U32
    es_base: U32
    tr_base: U32
    cs_limit: U32
    ds_limit: U32
    ss_limit: U32
    es_limit: U32
    tr_limit: U32
    cs_ar: U16
    ds_ar: U16
    ss_ar: U16
    es_ar: U16
    tr_ar: U16
    pad2_0: U16
    pad2_1: U16
    pad2_2: U16


class Context64(NamedTuple):
    """struct vcpu_hvm_x86_64: a VCPU that starts in long mode, with flat segments."""

    rax: U64
    rcx: U64
    rdx: U64
    rbx: U64
    rsp: U64
    rbp: U64
    rsi: U64
    rdi: U64
    rip: U64
    rflags: U64
    cr0: U64
    cr3: U64
    cr4: U64
    efer: U64


VcpuContext = Context32 | Context64

MODE_32B: Final = 0
MODE_64B: Final = 1
CONTEXT_SIZE: Final = 8 + 8 * 14 + 8
"""struct vcpu_hvm_context: the header and the larger of the two register sets."""

SET_PERIODIC_TIMER_ARG: Final = Layout(SetPeriodicTimer)
SET_SINGLESHOT_TIMER_ARG: Final = Layout(SetSingleshotTimer)
REGISTER_VCPU_INFO_ARG: Final = Layout(RegisterVcpuInfo)
REGISTER_AREA_ARG: Final = Layout(RegisterArea)
RUNSTATE_INFO: Final = Layout(RunstateInfo)
VCPU_TIME_INFO: Final = Layout(VcpuTimeInfo)
CONTEXT_HEADER: Final = Layout(ContextHeader)
CONTEXT_32: Final = Layout(Context32)
CONTEXT_64: Final = Layout(Context64)

"""hvm_op and the HVM parameters: xen/include/public/hvm/hvm_op.h and params.h."""

from __future__ import annotations

from typing import Final, NamedTuple

from pyxen.abi.layout import U8, U16, U32, U64, Layout, U64Aligned

SET_PARAM: Final = 0
GET_PARAM: Final = 1
FLUSH_TLBS: Final = 5
PAGETABLE_DYING: Final = 9
GET_TIME: Final = 10
XENTRACE: Final = 11
GET_MEM_TYPE: Final = 15
SET_EVTCHN_UPCALL_VECTOR: Final = 23
GUEST_REQUEST_VM_EVENT: Final = 24
ALTP2M: Final = 25

PARAM_CALLBACK_IRQ: Final = 0
PARAM_STORE_PFN: Final = 1
PARAM_STORE_EVTCHN: Final = 2
PARAM_PAE_ENABLED: Final = 4
PARAM_DM_DOMAIN: Final = 13
PARAM_VM86_TSS: Final = 15
PARAM_CONSOLE_PFN: Final = 17
PARAM_CONSOLE_EVTCHN: Final = 18
PARAM_ACPI_IOPORTS_LOCATION: Final = 19
PARAM_MEMORY_EVENT_CR0: Final = 20
PARAM_MEMORY_EVENT_CR3: Final = 21
PARAM_MEMORY_EVENT_CR4: Final = 22
PARAM_MEMORY_EVENT_INT3: Final = 23
PARAM_NESTEDHVM: Final = 24
PARAM_MEMORY_EVENT_SINGLE_STEP: Final = 25
PARAM_BUFIOREQ_EVTCHN: Final = 26
PARAM_MEMORY_EVENT_MSR: Final = 30
PARAM_TRIPLE_FAULT_REASON: Final = 31
PARAM_VM_GENERATION_ID_ADDR: Final = 34
PARAM_ALTP2M: Final = 35
PARAM_X87_FIP_WIDTH: Final = 36
PARAM_VM86_TSS_SIZED: Final = 37
NR_PARAMS: Final = 39

GUEST_MAY_SET: Final = frozenset(
    {
        PARAM_CALLBACK_IRQ,
        PARAM_VM86_TSS,
        PARAM_VM86_TSS_SIZED,
        PARAM_ACPI_IOPORTS_LOCATION,
        PARAM_VM_GENERATION_ID_ADDR,
        PARAM_STORE_EVTCHN,
        PARAM_CONSOLE_EVTCHN,
        PARAM_X87_FIP_WIDTH,
    }
)
GUEST_MAY_GET: Final = GUEST_MAY_SET | {PARAM_STORE_PFN, PARAM_CONSOLE_PFN, PARAM_ALTP2M}
DEPRECATED: Final = frozenset(
    {
        PARAM_PAE_ENABLED,
        PARAM_DM_DOMAIN,
        PARAM_MEMORY_EVENT_CR0,
        PARAM_MEMORY_EVENT_CR3,
        PARAM_MEMORY_EVENT_CR4,
        PARAM_MEMORY_EVENT_INT3,
        PARAM_NESTEDHVM,
        PARAM_MEMORY_EVENT_SINGLE_STEP,
        PARAM_BUFIOREQ_EVTCHN,
        PARAM_MEMORY_EVENT_MSR,
    }
)

CALLBACK_TYPE_SHIFT: Final = 56
CALLBACK_VECTOR: Final = 2
"""A callback's type in the top byte of PARAM_CALLBACK_IRQ: the low byte is a vector. 0 and 1 are GSI and PCI INTx."""

MEM_RAM_RW: Final = 0
MEM_MMIO_DM: Final = 2


class Param(NamedTuple):
    domid: U16
    number: U32
    value: U64Aligned


class GetTime(NamedTuple):
    now: U64


class GetMemType(NamedTuple):
    domid: U16
    mem_type: U16
    pad0: U16
    pad1: U16
    pfn: U64Aligned


class PagetableDying(NamedTuple):
    domid: U16
    pad0: U16
    pad1: U16
    pad2: U16
    gpa: U64


class EvtchnUpcallVector(NamedTuple):
    vcpu: U32
    vector: U8


PARAM_ARG: Final = Layout(Param)
GET_TIME_ARG: Final = Layout(GetTime)
GET_MEM_TYPE_ARG: Final = Layout(GetMemType)
PAGETABLE_DYING_ARG: Final = Layout(PagetableDying)
EVTCHN_UPCALL_VECTOR_ARG: Final = Layout(EvtchnUpcallVector)

"""The registers of a VCPU that starts: at a PVH entry point, or as another VCPU asks for it by VCPUOP_initialise.

PVH: xen/include/public/arch-x86/hvm/start_info.h says what must hold at the entry.
"""

from __future__ import annotations

from typing import Final

from pyxen.abi.vcpu import Context32, Context64, VcpuContext
from pyxen.hypervisor.kvm import Segment, SpecialRegisters
from pyxen.hypervisor.kvm.uapi import Register

_PROTECTED: Final = 1
_PAGING: Final = 1 << 31
_LONG_MODE_ACTIVE: Final = 1 << 10
_RFLAGS: Final = 2
_CODE, _DATA, _TASK = 0xB, 0x3, 0xB
_CODE_SELECTOR, _DATA_SELECTOR = 0x8, 0x10

MTRR_DEFAULT_TYPE: Final = 0x2FF
MTRR_WRITE_BACK: Final = 0x806
"""Memory is cached unless said otherwise; MTRRs are on."""


def pvh(sregs: SpecialRegisters, entry: int, start_info: int) -> dict[Register, int]:
    """Change ``sregs`` to flat 32-bit protected mode without paging; returns the general registers."""
    _flat(sregs, Segment(selector=_CODE_SELECTOR, type=_CODE, db=1, granular=1))
    sregs.set_segment("tr", Segment(limit=0x67, type=_TASK, s=0))
    sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer = _PROTECTED, 0, 0, 0
    return {Register.RIP: entry, Register.RBX: start_info, Register.RFLAGS: _RFLAGS}


def initialised(sregs: SpecialRegisters, context: VcpuContext) -> dict[Register, int]:
    """The same for a context that the guest gave."""
    return _from64(sregs, context) if isinstance(context, Context64) else _from32(sregs, context)


def _from64(sregs: SpecialRegisters, c: Context64) -> dict[Register, int]:
    _flat(sregs, Segment(selector=_CODE_SELECTOR, type=_CODE, long=1, granular=1))
    sregs.set_segment("tr", Segment(limit=0x67, type=_TASK, s=0))
    sregs.cr0, sregs.cr3, sregs.cr4 = c.cr0, c.cr3, c.cr4
    sregs.efer = c.efer | (_LONG_MODE_ACTIVE if c.cr0 & _PAGING else 0)
    return {
        Register.RAX: c.rax,
        Register.RCX: c.rcx,
        Register.RDX: c.rdx,
        Register.RBX: c.rbx,
        Register.RSP: c.rsp,
        Register.RBP: c.rbp,
        Register.RSI: c.rsi,
        Register.RDI: c.rdi,
        Register.RIP: c.rip,
        Register.RFLAGS: c.rflags | _RFLAGS,
    }


def _from32(sregs: SpecialRegisters, c: Context32) -> dict[Register, int]:
    sregs.set_segment("cs", _segment(c.cs_base, c.cs_limit, c.cs_ar, _CODE_SELECTOR))
    sregs.set_segment("ds", _segment(c.ds_base, c.ds_limit, c.ds_ar, _DATA_SELECTOR))
    sregs.set_segment("es", _segment(c.es_base, c.es_limit, c.es_ar, _DATA_SELECTOR))
    sregs.set_segment("ss", _segment(c.ss_base, c.ss_limit, c.ss_ar, _DATA_SELECTOR))
    sregs.set_segment("tr", _segment(c.tr_base, c.tr_limit, c.tr_ar, 0))
    sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer = c.cr0, c.cr3, c.cr4, c.efer
    return {
        Register.RAX: c.eax,
        Register.RCX: c.ecx,
        Register.RDX: c.edx,
        Register.RBX: c.ebx,
        Register.RSP: c.esp,
        Register.RBP: c.ebp,
        Register.RSI: c.esi,
        Register.RDI: c.edi,
        Register.RIP: c.eip,
        Register.RFLAGS: c.eflags | _RFLAGS,
    }


def _segment(base: int, limit: int, attributes: int, selector: int) -> Segment:
    """``attributes`` as in a VMCB: type (4 bits), s, dpl (2), present, avl, long, db, granular."""
    bit = [attributes >> place & 1 for place in range(12)]
    return Segment(
        base,
        limit,
        selector,
        type=attributes & 0xF,
        s=bit[4],
        dpl=attributes >> 5 & 3,
        present=bit[7],
        avl=bit[8],
        long=bit[9],
        db=bit[10],
        granular=bit[11],
        unusable=1 - bit[7],
    )


def _flat(sregs: SpecialRegisters, code: Segment) -> None:
    sregs.set_segment("cs", code)
    for name in ("ds", "es", "fs", "gs", "ss"):
        sregs.set_segment(name, Segment(selector=_DATA_SELECTOR, type=_DATA, db=1, granular=1))
    sregs.set_segment("ldt", Segment(limit=0, type=2, s=0, unusable=1, present=0))
    sregs.set_tables(gdt=(0, 0), idt=(0, 0))

"""Registers with which a VCPU can start."""

from __future__ import annotations

from pyxen.abi import vcpu as abi

LONG_MODE = abi.Context64(
    rax=1,
    rcx=2,
    rdx=3,
    rbx=4,
    rsp=5,
    rbp=6,
    rsi=7,
    rdi=8,
    rip=0xFFFFFFFF81000000,
    rflags=2,
    cr0=0x80000011,
    cr3=0x1000,
    cr4=0x20,
    efer=0x500,
)
FLAT = abi.Context32(
    *(0,) * 8,
    eip=0x1000,
    eflags=2,
    cr0=1,
    cr3=0,
    cr4=0,
    pad1=0,
    efer=0,
    cs_base=0,
    ds_base=0,
    ss_base=0,
    es_base=0,
    tr_base=0,
    cs_limit=0xFFFFFFFF,
    ds_limit=0xFFFFFFFF,
    ss_limit=0xFFFFFFFF,
    es_limit=0xFFFFFFFF,
    tr_limit=0x67,
    cs_ar=0xC9B,
    ds_ar=0xC93,
    ss_ar=0xC93,
    es_ar=0xC93,
    tr_ar=0x8B,
    pad2_0=0,
    pad2_1=0,
    pad2_2=0,
)

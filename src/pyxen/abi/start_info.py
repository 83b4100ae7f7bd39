"""struct hvm_start_info, what a PVH kernel finds at EBX: xen/include/public/arch-x86/hvm/start_info.h."""

from __future__ import annotations

from typing import Final, NamedTuple

from pyxen.abi.layout import U32, Layout, U64Aligned

MAGIC: Final = 0x336EC578
VERSION: Final = 1
"""With this version the memory map's fields are valid."""

MEMMAP_RAM: Final = 1
MEMMAP_RESERVED: Final = 2
MEMMAP_ACPI: Final = 3


class StartInfo(NamedTuple):
    magic: U32
    version: U32
    flags: U32
    nr_modules: U32
    modlist_paddr: U64Aligned
    cmdline_paddr: U64Aligned
    rsdp_paddr: U64Aligned
    memmap_paddr: U64Aligned
    memmap_entries: U32
    reserved: U32


class Module(NamedTuple):
    paddr: U64Aligned
    size: U64Aligned
    cmdline_paddr: U64Aligned
    reserved: U64Aligned


class MemmapEntry(NamedTuple):
    addr: U64Aligned
    size: U64Aligned
    type: U32
    reserved: U32


START_INFO: Final = Layout(StartInfo)
MODULE: Final = Layout(Module)
MEMMAP_ENTRY: Final = Layout(MemmapEntry)

"""From a guest's virtual addresses to its physical ones, by its own page tables, as the CPU walks them.

Access rights: a page must be present and, for writing, writable all the way; user and supervisor pages are alike.
"""

from __future__ import annotations

import struct
from typing import Final

from pyxen.hypervisor.kvm.uapi import SREGS_CR0
from pyxen.hypervisor.memory import PAGE_SIZE, BadAddress, GuestMemory

_CONTROL: Final = struct.Struct("<6Q")  # cr0, cr2, cr3, cr4, cr8, efer
_PAGING, _PSE, _PAE, _LA57, _LONG_MODE_ACTIVE = 1 << 31, 1 << 4, 1 << 5, 1 << 12, 1 << 10
_PRESENT, _WRITABLE, _LARGE = 1, 2, 1 << 7
_FRAME: Final = 0x000F_FFFF_FFFF_F000
_LEVELS_4: Final = (39, 30, 21, 12)
_LEVELS_5: Final = (48, *_LEVELS_4)


def walk(memory: GuestMemory, sregs: bytes | memoryview, address: int, *, write: bool) -> int:
    """The physical address of ``address``, by ``struct kvm_sregs``. Raises BadAddress."""
    cr0, _, cr3, cr4, _, efer = _CONTROL.unpack_from(sregs, SREGS_CR0)
    if not cr0 & _PAGING:
        return address & 0xFFFFFFFF
    needed = _PRESENT | _WRITABLE if write else _PRESENT
    if efer & _LONG_MODE_ACTIVE:
        levels = _LEVELS_5 if cr4 & _LA57 else _LEVELS_4
        top = address >> (levels[0] + 8)
        if top not in (0, (1 << (64 - levels[0] - 8)) - 1):
            raise BadAddress(address, 1)
        return _walk(memory, cr3 & _FRAME, levels, address, needed)
    address &= 0xFFFFFFFF
    if cr4 & _PAE:
        entry = memory.u64((cr3 & 0xFFFFFFE0) + (address >> 30) * 8)
        if not entry & _PRESENT:
            raise BadAddress(address, 1)
        return _walk(memory, entry & _FRAME, (21, 12), address, needed)
    return _walk_32(memory, cr3, address, needed, large=bool(cr4 & _PSE))


def _walk(memory: GuestMemory, table: int, levels: tuple[int, ...], address: int, needed: int) -> int:
    # Page tables nearly always lie in the first region: each hypercall with a pointer comes here.
    first = memory.regions[0]
    start, last, words = first.start, first.end - PAGE_SIZE, first.words
    for shift in levels:
        if start <= table <= last:
            entry = words[(table - start >> 3) + (address >> shift & 0x1FF)]
        else:
            entry = memory.u64(table + (address >> shift & 0x1FF) * 8)
        if entry & needed != needed:
            raise BadAddress(address, 1)
        if shift == 12 or (entry & _LARGE and shift <= 30):
            offset = (1 << shift) - 1
            return entry & _FRAME & ~offset | address & offset
        table = entry & _FRAME
    raise BadAddress(address, 1)


def _walk_32(memory: GuestMemory, cr3: int, address: int, needed: int, *, large: bool) -> int:
    entry = memory.u32((cr3 & 0xFFFFF000) + (address >> 22) * 4)
    if entry & needed != needed:
        raise BadAddress(address, 1)
    if large and entry & _LARGE:
        return entry & 0xFFC00000 | address & 0x3FFFFF
    entry = memory.u32((entry & 0xFFFFF000) + (address >> 12 & 0x3FF) * 4)
    if entry & needed != needed:
        raise BadAddress(address, 1)
    return entry & 0xFFFFF000 | address & 0xFFF

"""memory_op: xen/include/public/memory.h."""

from __future__ import annotations

from typing import Final, NamedTuple

from pyxen.abi.layout import U16, U32, Layout, Pointer, ULong

INCREASE_RESERVATION: Final = 0
DECREASE_RESERVATION: Final = 1
MAXIMUM_RAM_PAGE: Final = 2
CURRENT_RESERVATION: Final = 3
MAXIMUM_RESERVATION: Final = 4
MACHPHYS_MFN_LIST: Final = 5
POPULATE_PHYSMAP: Final = 6
ADD_TO_PHYSMAP: Final = 7
MEMORY_MAP: Final = 9
MACHINE_MEMORY_MAP: Final = 10
EXCHANGE: Final = 11
MACHPHYS_MAPPING: Final = 12
SET_MEMORY_MAP: Final = 13
MAXIMUM_GPFN: Final = 14
REMOVE_FROM_PHYSMAP: Final = 15
SET_POD_TARGET: Final = 16
GET_POD_TARGET: Final = 17
ADD_TO_PHYSMAP_BATCH: Final = 23
CLAIM_PAGES: Final = 24
GET_VNUMAINFO: Final = 26
ACQUIRE_RESOURCE: Final = 28

CMD_MASK: Final = 0x3F
"""The low bits of the command; the others are the extent at which a continued call goes on."""
START_EXTENT_SHIFT: Final = 6

SPACE_SHARED_INFO: Final = 0
SPACE_GRANT_TABLE: Final = 1
SPACE_GMFN: Final = 2
SPACE_GMFN_RANGE: Final = 3
SPACE_GMFN_FOREIGN: Final = 4
GRANT_STATUS_FRAME: Final = 1 << 31
"""In ``idx`` of SPACE_GRANT_TABLE: a frame of status words."""

E820_ENTRY: Final = 20
"""Bytes of an entry of the memory map: address u64, size u64, type u32."""


class Reservation(NamedTuple):
    extent_start: Pointer
    nr_extents: ULong
    extent_order: U32
    mem_flags: U32
    domid: U16


class AddToPhysmap(NamedTuple):
    domid: U16
    size: U16
    space: U32
    idx: ULong
    gpfn: ULong


class AddToPhysmapBatch(NamedTuple):
    domid: U16
    space: U16
    size: U16
    foreign_domid: U16
    idxs: Pointer
    gpfns: Pointer
    errs: Pointer


class RemoveFromPhysmap(NamedTuple):
    domid: U16
    gpfn: ULong


class MemoryMap(NamedTuple):
    nr_entries: U32
    buffer: Pointer


class DomainId(NamedTuple):
    domid: U16


RESERVATION_ARG: Final = Layout(Reservation)
ADD_TO_PHYSMAP_ARG: Final = Layout(AddToPhysmap)
ADD_TO_PHYSMAP_BATCH_ARG: Final = Layout(AddToPhysmapBatch)
REMOVE_FROM_PHYSMAP_ARG: Final = Layout(RemoveFromPhysmap)
MEMORY_MAP_ARG: Final = Layout(MemoryMap)
DOMAIN_ID_ARG: Final = Layout(DomainId)

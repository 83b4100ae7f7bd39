"""Grant tables: xen/include/public/grant_table.h."""

from __future__ import annotations

from typing import Annotated, Final, NamedTuple

from pyxen.abi.layout import I16, U16, U32, U64, Kind, Layout, Pointer, U64Aligned, ULong

MAP_GRANT_REF: Final = 0
UNMAP_GRANT_REF: Final = 1
SETUP_TABLE: Final = 2
DUMP_TABLE: Final = 3
TRANSFER: Final = 4
COPY: Final = 5
QUERY_SIZE: Final = 6
UNMAP_AND_REPLACE: Final = 7
SET_VERSION: Final = 8
GET_STATUS_FRAMES: Final = 9
GET_VERSION: Final = 10
SWAP_GRANT_REF: Final = 11
CACHE_FLUSH: Final = 12

CMD_MASK: Final = 0xFFF

GTF_TYPE_MASK: Final = 3
GTF_INVALID: Final = 0
GTF_PERMIT_ACCESS: Final = 1
GTF_ACCEPT_TRANSFER: Final = 2
GTF_TRANSITIVE: Final = 3
GTF_READONLY: Final = 4
GTF_READING: Final = 8
GTF_WRITING: Final = 16
GTF_SUB_PAGE: Final = 256

V1_ENTRY: Final = 8
"""Bytes of an entry: flags u16, domid u16, frame u32."""
V1_PER_FRAME: Final = 512
V2_ENTRY: Final = 16
"""flags u16, domid u16, then by type: offset u16 @4, length u16 @6, frame u64 @8."""
V2_PER_FRAME: Final = 256
STATUS_PER_FRAME: Final = 2048
NR_RESERVED: Final = 8
"""References that the tool stack fills before the guest starts."""
RESERVED_CONSOLE: Final = 0
RESERVED_XENSTORE: Final = 1

OKAY: Final = 0
GENERAL_ERROR: Final = -1
BAD_DOMAIN: Final = -2
BAD_GNTREF: Final = -3
BAD_HANDLE: Final = -4
BAD_VIRT_ADDR: Final = -5
PERMISSION_DENIED: Final = -8
BAD_PAGE: Final = -9
BAD_COPY_ARG: Final = -10
EAGAIN: Final = -12

COPY_SOURCE_GREF: Final = 1
COPY_DEST_GREF: Final = 2


class MapGrantRef(NamedTuple):
    host_addr: U64Aligned
    flags: U32
    ref: U32
    dom: U16
    status: I16
    handle: U32
    dev_bus_addr: U64Aligned


class UnmapGrantRef(NamedTuple):
    """Also struct gnttab_unmap_and_replace, whose second address has another name."""

    host_addr: U64Aligned
    dev_bus_addr: U64Aligned
    handle: U32
    status: I16


class SetupTable(NamedTuple):
    dom: U16
    nr_frames: U32
    status: I16
    frame_list: Pointer


_AfterCopyPointer = Annotated[int, Kind(2, 8, 4, "H", "H", 2)]
"""Source and destination are structures of their own, padded at their ends."""


class CopyOp(NamedTuple):
    source: ULong
    """A grant reference (32 bits) or a gfn."""
    source_domid: U16
    source_offset: U16
    dest: ULong
    dest_domid: U16
    dest_offset: U16
    length: _AfterCopyPointer
    flags: U16
    status: I16


class QuerySize(NamedTuple):
    dom: U16
    nr_frames: U32
    max_nr_frames: U32
    status: I16


class SetVersion(NamedTuple):
    version: U32


class GetStatusFrames(NamedTuple):
    nr_frames: U32
    dom: U16
    status: I16
    frame_list: Pointer


class GetVersion(NamedTuple):
    dom: U16
    pad: U16
    version: U32


class SwapGrantRef(NamedTuple):
    ref_a: U32
    ref_b: U32
    status: I16


class CacheFlush(NamedTuple):
    address: U64
    offset: U16
    length: U16
    op: U32


MAP_GRANT_REF_ARG: Final = Layout(MapGrantRef)
UNMAP_GRANT_REF_ARG: Final = Layout(UnmapGrantRef)
SETUP_TABLE_ARG: Final = Layout(SetupTable)
COPY_ARG: Final = Layout(CopyOp)
QUERY_SIZE_ARG: Final = Layout(QuerySize)
SET_VERSION_ARG: Final = Layout(SetVersion)
GET_STATUS_FRAMES_ARG: Final = Layout(GetStatusFrames)
GET_VERSION_ARG: Final = Layout(GetVersion)
SWAP_GRANT_REF_ARG: Final = Layout(SwapGrantRef)
CACHE_FLUSH_ARG: Final = Layout(CacheFlush)


class GrantError(Exception):
    """A reference that can't be used as asked; ``status`` is GNTST_…"""

    def __init__(self, ref: int, status: int, why: str) -> None:
        super().__init__(f"grant reference {ref}: {why}")
        self.ref = ref
        self.status = status

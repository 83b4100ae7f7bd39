"""The block device's ring (xen/include/public/io/blkif.h). Sectors are 512 bytes here, whatever the disk's own are."""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Annotated, NamedTuple

from pyxen.abi.layout import I16, U8, U16, U64, Layout, byte_string

SECTOR_SIZE = 512
SECTORS_PER_PAGE = 8
MAX_SEGMENTS = 11
"""In a request that holds them itself."""
MAX_INDIRECT_PAGES = 8
SEGMENTS_PER_INDIRECT_PAGE = 512


class Operation(IntEnum):
    READ = 0
    WRITE = 1
    WRITE_BARRIER = 2
    FLUSH = 3
    DISCARD = 5
    INDIRECT = 6


class Status(IntEnum):
    OKAY = 0
    ERROR = -1
    EOPNOTSUPP = -2


class Request(NamedTuple):
    """What all requests but indirect and discard ones start with; segments follow."""

    operation: U8
    nr_segments: U8
    handle: U16
    id: U64
    sector: U64


class Discard(NamedTuple):
    operation: U8
    flag: U8
    handle: U16
    id: U64
    sector: U64
    nr_sectors: U64


class Indirect(NamedTuple):
    """``grefs`` are eight grant references of pages full of segments."""

    operation: U8
    indirect_op: U8
    nr_segments: U16
    id: U64
    sector: U64
    handle: U16
    pad: U16
    grefs: Annotated[bytes, byte_string(32)]


class Response(NamedTuple):
    id: U64
    operation: U8
    status: I16


REQUEST = Layout(Request)
DISCARD = Layout(Discard)
INDIRECT = Layout(Indirect)
RESPONSE = Layout(Response)

SEGMENT = struct.Struct("<IBBxx")
"""Grant reference, first and last sector of its page."""

GREFS = struct.Struct("<8I")

ENTRY_SIZE = {64: 112, 32: 108}
"""A slot of the ring, by the guest's width."""

PROTOCOLS = {"x86_64-abi": 64, "x86_32-abi": 32}


class VDisk(IntEnum):
    """Bits of the node ``info``."""

    CDROM = 1
    REMOVABLE = 2
    READONLY = 4

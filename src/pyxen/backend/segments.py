"""Requests of a block ring, taken apart and checked: which pages, which parts of them, which sectors of the disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pyxen.abi import blkif as abi
from pyxen.abi.blkif import Operation

_INDIRECT_MAX = abi.MAX_INDIRECT_PAGES * abi.SEGMENTS_PER_INDIRECT_PAGE
ReadPage = Callable[[int], bytes]
"""The contents of a granted page, copied once."""


class BadRequest(Exception):
    """The request can't be what it says; its answer is an error, the ring goes on."""


@dataclass(slots=True)
class Segment:
    """A stretch of a granted page, in bytes."""

    gref: int
    start: int
    length: int


@dataclass(slots=True)
class Transfer:
    """A read or write (``operation``) of all ``segments``, from ``offset`` (bytes) of the disk on."""

    id: int
    operation: int
    offset: int
    segments: list[Segment]

    @property
    def length(self) -> int:
        return sum(segment.length for segment in self.segments)


def parse(raw: bytes, bits: int, read_page: ReadPage, most_indirect: int) -> Transfer:
    """Any request but a discard. Raises BadRequest."""
    request = abi.REQUEST.unpack(raw, bits)
    if request.operation == Operation.INDIRECT:
        return _indirect(raw, bits, read_page, most_indirect)
    if request.nr_segments > abi.MAX_SEGMENTS:
        raise BadRequest(f"{request.nr_segments} segments")
    start = abi.REQUEST.size(bits)
    data = raw[start : start + request.nr_segments * abi.SEGMENT.size]
    return Transfer(request.id, request.operation, request.sector * abi.SECTOR_SIZE, _segments(data))


def _indirect(raw: bytes, bits: int, read_page: ReadPage, most: int) -> Transfer:
    request = abi.INDIRECT.unpack(raw, bits)
    count = request.nr_segments
    if request.indirect_op not in (Operation.READ, Operation.WRITE) or not 0 < count <= min(most, _INDIRECT_MAX):
        raise BadRequest(f"indirect operation {request.indirect_op} with {count} segments")
    pages = -(-count // abi.SEGMENTS_PER_INDIRECT_PAGE)
    table = b"".join(read_page(gref) for gref in abi.GREFS.unpack(request.grefs)[:pages])
    segments = _segments(table[: count * abi.SEGMENT.size])
    return Transfer(request.id, request.indirect_op, request.sector * abi.SECTOR_SIZE, segments)


def _segments(data: bytes) -> list[Segment]:
    segments = []
    for gref, first, last in abi.SEGMENT.iter_unpack(data):
        if not first <= last < abi.SECTORS_PER_PAGE:
            raise BadRequest(f"sectors {first} to {last} of a page")
        segments.append(Segment(gref, first * abi.SECTOR_SIZE, (last - first + 1) * abi.SECTOR_SIZE))
    return segments

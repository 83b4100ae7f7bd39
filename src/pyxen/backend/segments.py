"""Requests of a block ring, taken apart and checked: which pages, which parts of them, which sectors of the disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from pyxen.abi import blkif as abi
from pyxen.abi.blkif import Operation

# Plain numbers: in Python 3.11 looking up an enum's member costs as much as ten additions.
_INDIRECT = Operation.INDIRECT.value
_SECTOR_SIZE, _SECTORS_PER_PAGE = abi.SECTOR_SIZE, abi.SECTORS_PER_PAGE
_INDIRECT_MAX = abi.MAX_INDIRECT_PAGES * abi.SEGMENTS_PER_INDIRECT_PAGE
ReadPage = Callable[[int], bytes]
"""The contents of a granted page, copied once."""


class BadRequest(Exception):
    """The request can't be what it says; its answer is an error, the ring goes on."""


Segment = tuple[int, int, int]
"""A stretch of a granted page: its grant reference, and where the stretch starts and ends in bytes."""


class Transfer(NamedTuple):
    """A read or write (``operation``) of all ``segments``, ``length`` bytes from ``offset`` of the disk on."""

    id: int
    operation: int
    offset: int
    length: int
    segments: list[Segment]


def parse(raw: bytes, bits: int, read_page: ReadPage, most_indirect: int) -> Transfer:
    """Any request but a discard. Raises BadRequest."""
    request = abi.REQUEST.unpack(raw, bits)
    if request.operation == _INDIRECT:
        return _indirect(raw, bits, read_page, most_indirect)
    if request.nr_segments > abi.MAX_SEGMENTS:
        raise BadRequest(f"{request.nr_segments} segments")
    start = abi.REQUEST.size(bits)
    data = raw[start : start + request.nr_segments * abi.SEGMENT.size]
    return Transfer(request.id, request.operation, request.sector * abi.SECTOR_SIZE, *_segments(data))


def _indirect(raw: bytes, bits: int, read_page: ReadPage, most: int) -> Transfer:
    request = abi.INDIRECT.unpack(raw, bits)
    count = request.nr_segments
    if request.indirect_op not in (Operation.READ, Operation.WRITE) or not 0 < count <= min(most, _INDIRECT_MAX):
        raise BadRequest(f"indirect operation {request.indirect_op} with {count} segments")
    pages = -(-count // abi.SEGMENTS_PER_INDIRECT_PAGE)
    table = b"".join(read_page(gref) for gref in abi.GREFS.unpack(request.grefs)[:pages])
    segments = _segments(table[: count * abi.SEGMENT.size])
    return Transfer(request.id, request.indirect_op, request.sector * abi.SECTOR_SIZE, *segments)


def _segments(data: bytes) -> tuple[int, list[Segment]]:
    """Their length together, and the segments. A request may have hundreds, so this is one loop over tuples."""
    length = 0
    segments = []
    for gref, first, last in abi.SEGMENT.iter_unpack(data):
        if not first <= last < _SECTORS_PER_PAGE:
            raise BadRequest(f"sectors {first} to {last} of a page")
        start, end = first * _SECTOR_SIZE, (last + 1) * _SECTOR_SIZE
        length += end - start
        segments.append((gref, start, end))
    return length, segments

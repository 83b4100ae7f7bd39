"""The ring that a front end and a back end share: requests one way, responses the other, in the same slots.

From xen/include/public/io/ring.h. Indices are 32 bits wide, run freely and are reduced when used.
"""

from __future__ import annotations

REQ_PROD = 0
REQ_EVENT = 4
RSP_PROD = 8
RSP_EVENT = 12
HEADER_SIZE = 64
"""Where the slots start."""

PAGE_SIZE = 4096


def slots(pages: int, entry_size: int) -> int:
    """How many entries fit: a power of two."""
    room = (pages * PAGE_SIZE - HEADER_SIZE) // entry_size
    return 1 << (room.bit_length() - 1)


def crossed(event: int, old: int, new: int) -> bool:
    """Whether ``event`` lies in (old, new]: the other side has asked to be told of this."""
    return (new - event) & 0xFFFF_FFFF < (new - old) & 0xFFFF_FFFF

"""struct shared_info and struct vcpu_info, as 64-bit and as 32-bit guests see them: xen/include/public/xen.h."""

from __future__ import annotations

from typing import Final, NamedTuple

PAGE_SIZE: Final = 4096
LEGACY_MAX_VCPUS: Final = 32
"""VCPUs that have a vcpu_info inside shared_info; the others must register one."""

DOMID_SELF: Final = 0x7FF0
DOMID_IO: Final = 0x7FF1
DOMID_XEN: Final = 0x7FF2
DOMID_INVALID: Final = 0x7FF4

VCPU_INFO_SIZE: Final = 64
UPCALL_PENDING: Final = 0
"""Offset in vcpu_info (u8), as the next ones."""
UPCALL_MASK: Final = 1
PENDING_SEL: Final = 8
PENDING_SEL_32: Final = 4
TIME: Final = 32
"""Of struct vcpu_time_info, in both layouts."""


class SharedInfoLayout(NamedTuple):
    """Offsets in shared_info; vcpu_info[32] comes first in both layouts."""

    word_bits: int
    """Bits in one word of the bitmaps, and words in each."""
    ports: int
    pending: int
    mask: int
    wc_version: int
    wc_sec: int
    wc_nsec: int
    wc_sec_hi: int
    pending_sel: int
    """In vcpu_info."""
    size: int


LAYOUT_64: Final = SharedInfoLayout(64, 4096, 2048, 2560, 3072, 3076, 3080, 3084, PENDING_SEL, 3136)
LAYOUT_32: Final = SharedInfoLayout(32, 1024, 2048, 2176, 2304, 2308, 2312, 2340, PENDING_SEL_32, 2344)
LAYOUTS: Final = {64: LAYOUT_64, 32: LAYOUT_32}

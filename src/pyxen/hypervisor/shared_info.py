"""The domain's shared_info page: where it is, the wall clock in it, and each VCPU's vcpu_info.

Until the guest places it (XENMEM_add_to_physmap) it is a page of our own, so that nothing else has to ask.
"""

from __future__ import annotations

from pyxen.abi.shared_info import (
    LAYOUT_64,
    LAYOUTS,
    LEGACY_MAX_VCPUS,
    PAGE_SIZE,
    VCPU_INFO_SIZE,
    SharedInfoLayout,
)
from pyxen.hypervisor.atomic import SharedPage

_NS: int = 1_000_000_000


def private_page() -> SharedPage:
    """A zeroed page that the guest doesn't see (yet)."""
    return SharedPage(memoryview(bytearray(PAGE_SIZE)))


class SharedInfo:
    """shared_info, in the layout (64 or 32 bits) that the guest was last seen to use."""

    def __init__(self) -> None:
        self.page = private_page()
        self.gfn: int | None = None
        self.bits = 64
        self.layout: SharedInfoLayout = LAYOUT_64

    def set_bits(self, bits: int) -> None:
        """Note which layout the guest uses."""
        self.bits = bits
        self.layout = LAYOUTS[bits]

    def place(self, page: SharedPage, gfn: int | None) -> None:
        """Move to ``page``, contents included."""
        page.view[:] = self.page.view
        self.page = page
        self.gfn = gfn

    def vcpu_info_offset(self, vcpu: int) -> int | None:
        """Where the VCPU's vcpu_info lies in the page, None for those that have to register one."""
        return vcpu * VCPU_INFO_SIZE if vcpu < LEGACY_MAX_VCPUS else None

    def set_wallclock(self, ns: int) -> None:
        """Write the time of day at system time 0; its version is odd meanwhile."""
        words, layout = self.page.u32, self.layout
        seconds, rest = divmod(ns, _NS)
        version = words[layout.wc_version // 4] | 1
        words[layout.wc_version // 4] = version
        words[layout.wc_sec // 4] = seconds & 0xFFFFFFFF
        words[layout.wc_nsec // 4] = rest
        words[layout.wc_sec_hi // 4] = seconds >> 32
        words[layout.wc_version // 4] = (version + 1) & 0xFFFFFFFF

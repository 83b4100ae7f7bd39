"""Where things lie in a PVH domain's physical address space.

0           RAM, up to 3 GiB
0xFC000000  ACPI tables
0xFEE00000  local APICs
0xFEFF8000  eight special pages: xenstore's and the console's rings, …
0xFEFFC000  (Intel only) KVM's own pages lie below the special ones
4 GiB       the rest of RAM
"""

from __future__ import annotations

from typing import Final

from pyxen.hypervisor.memory import PAGE_SIZE

MIB: Final = 1 << 20
LOW_RAM_END: Final = 0xC0000000
HIGH_RAM: Final = 1 << 32
MOST_BYTES: Final = 1 << 40
"""No domain has more memory: as much as the page numbers of the oldest interfaces hold, with room to spare."""

ACPI: Final = 0xFC000000
ACPI_SIZE: Final = 0x10000

SPECIAL: Final = 0xFEFF8000
SPECIAL_PAGES: Final = 8
XENSTORE_GFN: Final = (SPECIAL >> 12) + 4
CONSOLE_GFN: Final = (SPECIAL >> 12) + 7

INTEL_PAGES: Final = SPECIAL - 16 * PAGE_SIZE
"""KVM's task state segment and identity map, for Intel processors without unrestricted guests."""


def ram(size: int) -> list[tuple[int, int]]:
    """The (address, length) of the pieces that ``size`` bytes of RAM come in."""
    low = min(size, LOW_RAM_END)
    return [(0, low)] if low == size else [(0, low), (HIGH_RAM, size - low)]

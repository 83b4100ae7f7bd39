"""physdev_op: xen/include/public/physdev.h. A PVH domain has no physical interrupts, so the numbers are all."""

from __future__ import annotations

from typing import Final

IRQ_STATUS_QUERY: Final = 5
EOI: Final = 12
MAP_PIRQ: Final = 13
UNMAP_PIRQ: Final = 14
PIRQ_EOI_GMFN_V1: Final = 17
GET_FREE_PIRQ: Final = 23
PIRQ_EOI_GMFN_V2: Final = 28

"""XENVER_get_features: xen/include/public/features.h."""

from __future__ import annotations

from typing import Final

WRITABLE_PAGE_TABLES: Final = 0
AUTO_TRANSLATED_PHYSMAP: Final = 2
HVM_CALLBACK_VECTOR: Final = 8
HVM_SAFE_PVCLOCK: Final = 9
MEMORY_OP_VNODE_SUPPORTED: Final = 13
NOT_DIRECT_MAPPED: Final = 16
RUNSTATE_PHYS_AREA: Final = 18
VCPU_TIME_PHYS_AREA: Final = 19

PVH_DOMU: Final = sum(
    1 << bit
    for bit in (
        WRITABLE_PAGE_TABLES,
        AUTO_TRANSLATED_PHYSMAP,
        HVM_CALLBACK_VECTOR,
        HVM_SAFE_PVCLOCK,
        MEMORY_OP_VNODE_SUPPORTED,
        NOT_DIRECT_MAPPED,
        RUNSTATE_PHYS_AREA,
        VCPU_TIME_PHYS_AREA,
    )
)
"""What a PVH domain without privileges has."""

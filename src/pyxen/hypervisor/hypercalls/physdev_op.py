"""PHYSDEV_OP: physical interrupts and devices, of which a PVH domain has none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyxen.abi.errno import ENOSYS

if TYPE_CHECKING:
    from pyxen.hypervisor.vcpu import Vcpu


def handle(vcpu: Vcpu, args: tuple[int, ...], bits: int) -> int:
    """(cmd, pointer). As in Xen for domains without emulated PIRQs (feature 10 is not set), nothing is there."""
    return -ENOSYS

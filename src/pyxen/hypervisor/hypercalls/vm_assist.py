"""VM_ASSIST: ways in which Xen helps that a guest switches on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyxen.abi.errno import EINVAL, ENOSYS
from pyxen.abi.hypercall import VM_ASSIST_DISABLE, VM_ASSIST_ENABLE, VM_ASSIST_RUNSTATE_UPDATE_FLAG

if TYPE_CHECKING:
    from pyxen.hypervisor.vcpu import Vcpu


def handle(vcpu: Vcpu, args: tuple[int, ...], bits: int) -> int:
    """(cmd, type). Only the runstate flag exists for HVM and PVH guests."""
    cmd, kind = args[0] & 0xFFFFFFFF, args[1] & 0xFFFFFFFF
    if kind != VM_ASSIST_RUNSTATE_UPDATE_FLAG:
        return -EINVAL
    if cmd not in (VM_ASSIST_ENABLE, VM_ASSIST_DISABLE):
        return -ENOSYS
    vcpu.domain.runstate_update_flag = cmd == VM_ASSIST_ENABLE
    return 0

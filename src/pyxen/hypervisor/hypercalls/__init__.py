"""One module for each hypercall; ``TABLE`` says which number is whose.

A handler gets the calling VCPU, the argument registers and the caller's mode (64 or 32), runs with ``domain.lock``
held, and returns what the guest is to see. It raises XenError to refuse, and lets BadAddress through (-EFAULT).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pyxen.abi import hypercall as nr
from pyxen.abi.errno import EPERM
from pyxen.hypervisor.hypercalls import (
    console_io,
    event_channel_op,
    grant_table_op,
    hvm_op,
    memory_op,
    multicall,
    physdev_op,
    sched_op,
    set_timer_op,
    vcpu_op,
    vm_assist,
    xen_version,
)

if TYPE_CHECKING:
    from pyxen.hypervisor.vcpu import Vcpu

_PRIVILEGED = (nr.PLATFORM_OP, nr.SYSCTL, nr.DOMCTL, nr.DM_OP)


def _refuse(vcpu: Vcpu, args: tuple[int, ...], bits: int) -> int:
    return -EPERM


Handler = Callable[["Vcpu", tuple[int, ...], int], int]

TABLE: dict[int, Handler] = {
    nr.MEMORY_OP: memory_op.handle,
    nr.SET_TIMER_OP: set_timer_op.handle,
    nr.EVENT_CHANNEL_OP_COMPAT: event_channel_op.handle_compat,
    nr.XEN_VERSION: xen_version.handle,
    nr.CONSOLE_IO: console_io.handle,
    nr.GRANT_TABLE_OP: grant_table_op.handle,
    nr.VM_ASSIST: vm_assist.handle,
    nr.VCPU_OP: vcpu_op.handle,
    nr.SCHED_OP: sched_op.handle,
    nr.EVENT_CHANNEL_OP: event_channel_op.handle,
    nr.PHYSDEV_OP: physdev_op.handle,
    nr.HVM_OP: hvm_op.handle,
    **dict.fromkeys(_PRIVILEGED, _refuse),
}
"""By number. The tool stack's are not permitted; all others, Xen's optional ones among them, are -ENOSYS."""

TABLE[nr.MULTICALL] = multicall.Multicall(dict(TABLE)).handle

"""Hypercall numbers (xen/include/public/xen.h) and the small structures of calls that have no header of their own."""

from __future__ import annotations

from typing import Final, NamedTuple

from pyxen.abi.layout import Layout, ULong

PLATFORM_OP: Final = 7
MEMORY_OP: Final = 12
MULTICALL: Final = 13
SET_TIMER_OP: Final = 15
EVENT_CHANNEL_OP_COMPAT: Final = 16
XEN_VERSION: Final = 17
CONSOLE_IO: Final = 18
GRANT_TABLE_OP: Final = 20
VM_ASSIST: Final = 21
VCPU_OP: Final = 24
XSM_OP: Final = 27
SCHED_OP: Final = 29
EVENT_CHANNEL_OP: Final = 32
PHYSDEV_OP: Final = 33
HVM_OP: Final = 34
SYSCTL: Final = 35
DOMCTL: Final = 36
ARGO_OP: Final = 39
XENPMU_OP: Final = 40
DM_OP: Final = 41
HYPFS_OP: Final = 42

CONSOLE_WRITE: Final = 0
CONSOLE_READ: Final = 1

VM_ASSIST_ENABLE: Final = 0
VM_ASSIST_DISABLE: Final = 1
VM_ASSIST_RUNSTATE_UPDATE_FLAG: Final = 5


class MulticallEntry(NamedTuple):
    op: ULong
    result: ULong
    arg0: ULong
    arg1: ULong
    arg2: ULong
    arg3: ULong
    arg4: ULong
    arg5: ULong


MULTICALL_ENTRY: Final = Layout(MulticallEntry)

"""VCPU_OP: VCPUs up and down, where their structures are, and their timers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pyxen.abi import vcpu as abi
from pyxen.abi.errno import (
    EBUSY,
    EEXIST,
    EINVAL,
    ENOENT,
    ENOSYS,
    ENXIO,
    ETIME,
    XenError,
)
from pyxen.abi.sched import SHUTDOWN_POWEROFF
from pyxen.abi.shared_info import PAGE_SIZE, VCPU_INFO_SIZE
from pyxen.hypervisor.hypercalls import guest
from pyxen.hypervisor.memory import BadAddress

if TYPE_CHECKING:
    from pyxen.hypervisor.vcpu import Vcpu

MIN_PERIOD_NS = 1_000_000
MAX_PERIOD_NS = 1 << 56
"""Xen's own limit is about two years."""


def _initialise(caller: Vcpu, target: Vcpu, arg: int, bits: int) -> int:
    data = bytes(guest.read(caller, arg, abi.CONTEXT_SIZE))
    mode = abi.CONTEXT_HEADER.unpack(data, 64).mode
    if mode == abi.MODE_32B:
        context: abi.VcpuContext = abi.CONTEXT_32.unpack(data, 64, abi.CONTEXT_HEADER.size64)
    elif mode == abi.MODE_64B:
        context = abi.CONTEXT_64.unpack(data, 64, abi.CONTEXT_HEADER.size64)
    else:
        return -EINVAL
    if target.initialised:
        return -EEXIST
    _check_context(context)
    target.context, target.initialised = context, True
    return 0


_PE, _PG = 1, 1 << 31
_PAE = 1 << 5
_LME, _LMA = 1 << 8, 1 << 10


def _canonical(address: int) -> bool:
    return address < 1 << 47 or address >= (1 << 64) - (1 << 47)


def _check_context(context: abi.VcpuContext) -> None:
    """Refuse registers that no processor would enter the guest with. Raises XenError(EINVAL)."""
    if isinstance(context, abi.Context64):
        if not (context.cr0 & _PE and context.cr0 & _PG and context.cr4 & _PAE and context.efer & _LME):
            raise XenError(EINVAL)
        if not context.efer & _LMA or not _canonical(context.rip):
            raise XenError(EINVAL)
        return
    segments = (context.cs_ar, context.ds_ar, context.ss_ar, context.es_ar, context.tr_ar)
    if any(rights >> 12 for rights in segments) or context.pad1 or context.pad2_0 or context.pad2_1 or context.pad2_2:
        raise XenError(EINVAL)
    if not context.cs_ar & 0x80 or not context.tr_ar & 0x80:
        raise XenError(EINVAL)
    if context.cr0 & _PG and not context.cr0 & _PE:
        raise XenError(EINVAL)


def _up(caller: Vcpu, target: Vcpu, arg: int, bits: int) -> int:
    if not target.initialised:
        return -EINVAL
    machine = target.domain.machine
    if not machine.vcpu_is_up(target.index):
        context, target.context = target.context, None
        machine.vcpu_up(target.index, context)
        target.domain.set_runstate(target, abi.RUNSTATE_RUNNING)
    return 0


def _down(caller: Vcpu, target: Vcpu, arg: int, bits: int) -> int:
    domain = target.domain
    others = any(domain.machine.vcpu_is_up(vcpu.index) for vcpu in domain.vcpus if vcpu is not target)
    if not others:
        # The last one going down is the domain's end.
        domain.stop(SHUTDOWN_POWEROFF)
        return 0
    # It can be brought up again where it stopped, also if it was started by an IPI.
    target.initialised = True
    domain.machine.vcpu_down(target.index)
    domain.set_runstate(target, abi.RUNSTATE_OFFLINE)
    target.wake()
    return 0


def _is_up(caller: Vcpu, target: Vcpu, arg: int, bits: int) -> int:
    return int(target is caller or target.domain.machine.vcpu_is_up(target.index))


def _get_runstate_info(caller: Vcpu, target: Vcpu, arg: int, bits: int) -> int:
    info = target.runstate.info(target.domain.machine.now_ns())
    guest.write(caller, arg, abi.RUNSTATE_INFO.pack(info, bits))
    return 0


def _area(caller: Vcpu, arg: int, size: int, bits: int) -> list[memoryview]:
    # A 32-bit guest fills in only the pointer's half of the union.
    address = int.from_bytes(guest.read(caller, arg, bits // 8), "little")
    if not address:
        return []
    try:
        return guest.pieces(caller, address, size, place=caller.domain.memory.keep)
    except BadAddress:
        # Accepted, and never written, as in Xen.
        return []


def _physical_area(caller: Vcpu, arg: int, size: int) -> list[memoryview]:
    """A place by guest-physical address: within a page, aligned; all ones: none."""
    gpa = guest.get(caller, abi.REGISTER_AREA_ARG, arg, 64).address
    if gpa == (1 << 64) - 1:
        return []
    if gpa % 8 or gpa % PAGE_SIZE + size > PAGE_SIZE:
        raise XenError(ENXIO)
    try:
        return [caller.domain.memory.keep(gpa, size)]
    except BadAddress:
        raise XenError(EINVAL) from None


def _set_runstate_area(target: Vcpu, pieces: list[memoryview], bits: int) -> int:
    target.runstate.set(pieces, bits)
    # Also brings up to date what the area shows: time spent so far.
    target.domain.set_runstate(target, target.runstate.state)
    return 0


def _register_runstate(caller: Vcpu, target: Vcpu, arg: int, bits: int) -> int:
    target.domain.running(caller)
    return _set_runstate_area(target, _area(caller, arg, abi.RUNSTATE_INFO.size(bits), bits), bits)


def _register_runstate_phys(caller: Vcpu, target: Vcpu, arg: int, bits: int) -> int:
    target.domain.running(caller)
    return _set_runstate_area(target, _physical_area(caller, arg, abi.RUNSTATE_INFO.size(bits)), bits)


def _register_time(caller: Vcpu, target: Vcpu, arg: int, bits: int) -> int:
    target.time_area.set(_area(caller, arg, abi.VCPU_TIME_INFO.size64, bits), bits)
    target.domain.update_time(target.index)
    return 0


def _register_time_phys(caller: Vcpu, target: Vcpu, arg: int, bits: int) -> int:
    target.time_area.set(_physical_area(caller, arg, abi.VCPU_TIME_INFO.size64), bits)
    target.domain.update_time(target.index)
    return 0


def _set_periodic_timer(caller: Vcpu, target: Vcpu, arg: int, bits: int) -> int:
    period = guest.get(caller, abi.SET_PERIODIC_TIMER_ARG, arg, bits).period_ns
    if not MIN_PERIOD_NS <= period <= MAX_PERIOD_NS:
        return -EINVAL
    target.domain.timers.set_periodic(target.index, period)
    return 0


def _stop_periodic_timer(caller: Vcpu, target: Vcpu, arg: int, bits: int) -> int:
    target.domain.timers.set_periodic(target.index, 0)
    return 0


def _set_singleshot_timer(caller: Vcpu, target: Vcpu, arg: int, bits: int) -> int:
    if target is not caller:
        return -EINVAL
    op = guest.get(caller, abi.SET_SINGLESHOT_TIMER_ARG, arg, bits)
    if op.flags & abi.SINGLESHOT_FUTURE and op.timeout_abs_ns < target.domain.machine.now_ns():
        return -ETIME
    target.domain.timers.set_singleshot(target.index, op.timeout_abs_ns)
    return 0


def _stop_singleshot_timer(caller: Vcpu, target: Vcpu, arg: int, bits: int) -> int:
    if target is not caller:
        return -EINVAL
    target.domain.timers.set_singleshot(target.index, None)
    return 0


def _register_vcpu_info(caller: Vcpu, target: Vcpu, arg: int, bits: int) -> int:
    op = guest.get(caller, abi.REGISTER_VCPU_INFO_ARG, arg, bits)
    if op.offset > PAGE_SIZE - VCPU_INFO_SIZE:
        return -EINVAL
    if op.offset % 8:
        return -ENXIO
    if target.info_gfn is not None:
        return -EBUSY
    target.domain.place_vcpu_info(target, target.domain.page(op.mfn), op.mfn, op.offset)
    return 0


def _send_nmi(caller: Vcpu, target: Vcpu, arg: int, bits: int) -> int:
    target.domain.machine.nmi(target.index)
    return 0


def _get_physid(caller: Vcpu, target: Vcpu, arg: int, bits: int) -> int:
    return -EINVAL


_OPS: dict[int, Callable[[Vcpu, Vcpu, int, int], int]] = {
    abi.INITIALISE: _initialise,
    abi.UP: _up,
    abi.DOWN: _down,
    abi.IS_UP: _is_up,
    abi.GET_RUNSTATE_INFO: _get_runstate_info,
    abi.REGISTER_RUNSTATE_MEMORY_AREA: _register_runstate,
    abi.SET_PERIODIC_TIMER: _set_periodic_timer,
    abi.STOP_PERIODIC_TIMER: _stop_periodic_timer,
    abi.SET_SINGLESHOT_TIMER: _set_singleshot_timer,
    abi.STOP_SINGLESHOT_TIMER: _stop_singleshot_timer,
    abi.REGISTER_VCPU_INFO: _register_vcpu_info,
    abi.SEND_NMI: _send_nmi,
    abi.GET_PHYSID: _get_physid,
    abi.REGISTER_VCPU_TIME_MEMORY_AREA: _register_time,
    abi.REGISTER_RUNSTATE_PHYS_AREA: _register_runstate_phys,
    abi.REGISTER_VCPU_TIME_PHYS_AREA: _register_time_phys,
}


def handle(vcpu: Vcpu, args: tuple[int, ...], bits: int) -> int:
    """(cmd, vcpu, pointer)."""
    target = vcpu.domain.require_vcpu(args[1] & 0xFFFFFFFF, ENOENT)
    operation = _OPS.get(args[0] & 0xFFFFFFFF)
    return operation(vcpu, target, args[2], bits) if operation is not None else -ENOSYS

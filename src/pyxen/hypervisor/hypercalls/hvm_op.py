"""HVM_OP: the domain's parameters, and how its VCPUs are interrupted."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pyxen.abi import hvm as abi
from pyxen.abi.errno import EEXIST, EINVAL, ENOENT, ENOSYS, EOPNOTSUPP, EPERM, ESRCH, XenError
from pyxen.hypervisor.hypercalls import guest

if TYPE_CHECKING:
    from pyxen.hypervisor.domain import Domain
    from pyxen.hypervisor.vcpu import Vcpu

FIRST_VECTOR = 0x10
"""Vectors below it are the processor's own."""


def _param(vcpu: Vcpu, arg: int) -> abi.Param:
    op = guest.get(vcpu, abi.PARAM_ARG, arg, 64)
    if op.number >= abi.NR_PARAMS:
        raise XenError(EINVAL)
    if not vcpu.domain.is_self(op.domid):
        raise XenError(EPERM if op.domid == 0 else ESRCH)
    if op.number in abi.DEPRECATED:
        raise XenError(EINVAL)
    return op


def _set_callback(domain: Domain, value: int) -> None:
    """Only vectors are delivered: a PVH domain has no interrupt lines, and 1 just says "by VCPU's own vectors"."""
    if value >> abi.CALLBACK_TYPE_SHIFT == abi.CALLBACK_VECTOR:
        vector = value & 0xFF
        if vector < FIRST_VECTOR:
            raise XenError(EINVAL)
        domain.callback_vector = vector
    else:
        domain.callback_vector = 0


def _set_param(vcpu: Vcpu, arg: int, bits: int) -> int:
    op = _param(vcpu, arg)
    domain = vcpu.domain
    if op.number == abi.PARAM_ALTP2M:
        return -EEXIST
    if op.number not in abi.GUEST_MAY_SET:
        return -EPERM
    if op.number == abi.PARAM_CALLBACK_IRQ:
        _set_callback(domain, op.value)
        domain.latch_bits(bits)
    elif op.number == abi.PARAM_X87_FIP_WIDTH and op.value not in (0, 4, 8):
        return -EINVAL
    domain.params[op.number] = op.value
    if op.number == abi.PARAM_CALLBACK_IRQ:
        for target in domain.vcpus:
            domain.check_upcall(target.index)
    return 0


def _get_param(vcpu: Vcpu, arg: int, bits: int) -> int:
    op = _param(vcpu, arg)
    if op.number not in abi.GUEST_MAY_GET:
        return -EPERM
    guest.put(vcpu, abi.PARAM_ARG, arg, 64, "value", vcpu.domain.params[op.number])
    return 0


def _get_time(vcpu: Vcpu, arg: int, bits: int) -> int:
    guest.put(vcpu, abi.GET_TIME_ARG, arg, 64, "now", vcpu.domain.machine.now_ns())
    return 0


def _get_mem_type(vcpu: Vcpu, arg: int, bits: int) -> int:
    op = guest.get(vcpu, abi.GET_MEM_TYPE_ARG, arg, 64)
    domain = vcpu.domain
    if not domain.is_self(op.domid):
        return -EPERM if op.domid == 0 else -ESRCH
    kind = abi.MEM_RAM_RW if domain.has_page(op.pfn) else abi.MEM_MMIO_DM
    guest.put(vcpu, abi.GET_MEM_TYPE_ARG, arg, 64, "mem_type", kind)
    return 0


def _pagetable_dying(vcpu: Vcpu, arg: int, bits: int) -> int:
    """Of use with shadow page tables only; KVM has none of Xen's."""
    op = guest.get(vcpu, abi.PAGETABLE_DYING_ARG, arg, 64)
    return -EINVAL if vcpu.domain.is_self(op.domid) else -EOPNOTSUPP


def _flush_tlbs(vcpu: Vcpu, arg: int, bits: int) -> int:
    """Not offered: guests that see an error flush by IPI, which KVM does well."""
    return -ENOSYS if arg == 0 else -EINVAL


def _set_evtchn_upcall_vector(vcpu: Vcpu, arg: int, bits: int) -> int:
    op = guest.get(vcpu, abi.EVTCHN_UPCALL_VECTOR_ARG, arg, 64)
    if op.vector < FIRST_VECTOR:
        return -EINVAL
    target = vcpu.domain.require_vcpu(op.vcpu, ENOENT)
    target.upcall_vector = op.vector
    vcpu.domain.check_upcall(target.index)
    return 0


_OPS: dict[int, Callable[[Vcpu, int, int], int]] = {
    abi.SET_PARAM: _set_param,
    abi.GET_PARAM: _get_param,
    abi.FLUSH_TLBS: _flush_tlbs,
    abi.PAGETABLE_DYING: _pagetable_dying,
    abi.GET_TIME: _get_time,
    abi.GET_MEM_TYPE: _get_mem_type,
    abi.SET_EVTCHN_UPCALL_VECTOR: _set_evtchn_upcall_vector,
}


def handle(vcpu: Vcpu, args: tuple[int, ...], bits: int) -> int:
    """(op, pointer). Every structure is the same for 64-bit and 32-bit callers."""
    operation = _OPS.get(args[0])
    return operation(vcpu, args[1], bits) if operation is not None else -ENOSYS

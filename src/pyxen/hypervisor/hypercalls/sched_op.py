"""SCHED_OP: waiting, and the domain's end."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pyxen.abi import sched as abi
from pyxen.abi.errno import EEXIST, EINVAL, ENOSYS, EPERM, ESRCH, XenError
from pyxen.abi.vcpu import RUNSTATE_BLOCKED, RUNSTATE_RUNNING
from pyxen.hypervisor.hypercalls import guest
from pyxen.hypervisor.timers import WATCHDOGS

if TYPE_CHECKING:
    from pyxen.hypervisor.vcpu import Vcpu

_NS = 1_000_000_000


def _wait(vcpu: Vcpu, deadline_ns: int | None) -> None:
    domain = vcpu.domain
    domain.set_runstate(vcpu, RUNSTATE_BLOCKED)
    vcpu.wait(deadline_ns)
    domain.set_runstate(vcpu, RUNSTATE_RUNNING)


def _yield(vcpu: Vcpu, arg: int, bits: int) -> int:
    return 0


def _block(vcpu: Vcpu, arg: int, bits: int) -> int:
    """Returns early now and then: guests look for their events again."""
    if not vcpu.upcall_pending:
        _wait(vcpu, None)
    return 0


def _poll(vcpu: Vcpu, arg: int, bits: int) -> int:
    op = guest.get(vcpu, abi.POLL_ARG, arg, bits)
    if op.nr_ports > abi.MAX_POLL_PORTS:
        return -EINVAL
    evtchn = vcpu.domain.evtchn
    data = bytes(guest.read(vcpu, op.ports, 4 * op.nr_ports)) if op.nr_ports else b""
    if vcpu.upcall_pending:
        return 0
    ports = frozenset(int.from_bytes(data[at : at + 4], "little") for at in range(0, len(data), 4))
    if 0 in ports:
        raise XenError(EINVAL)
    # Every port is looked at: one that can't exist is an error even beside one that is pending.
    if any([evtchn.is_pending(port) for port in ports]):  # noqa: C419
        return 0
    vcpu.polling = ports
    evtchn.pollers.add(vcpu)
    try:
        _wait(vcpu, op.timeout or None)
    finally:
        vcpu.polling = frozenset()
        evtchn.pollers.discard(vcpu)
    return 0


def _shutdown(vcpu: Vcpu, arg: int, bits: int) -> int:
    reason = guest.get(vcpu, abi.SHUTDOWN_ARG, arg, bits).reason
    if reason > abi.SHUTDOWN_MAX:
        return -EINVAL
    if reason == abi.SHUTDOWN_SUSPEND:
        vcpu.domain.suspended_by = vcpu.index
    vcpu.domain.stop(reason)
    # What the guest sees when it goes on here: its suspension was cancelled. One that goes on from a saved state, with
    # new channels and grants, sees 0 (KvmMachine.save).
    return int(reason == abi.SHUTDOWN_SUSPEND)


def _shutdown_code(vcpu: Vcpu, arg: int, bits: int) -> int:
    reason = guest.get(vcpu, abi.SHUTDOWN_ARG, arg, bits).reason
    if reason > abi.SHUTDOWN_MAX:
        return -EINVAL
    if vcpu.domain.shutdown_code is None:
        vcpu.domain.shutdown_code = reason
    return 0


def _remote_shutdown(vcpu: Vcpu, arg: int, bits: int) -> int:
    op = guest.get(vcpu, abi.REMOTE_SHUTDOWN_ARG, arg, bits)
    return -EPERM if vcpu.domain.is_self(op.domain_id) or op.domain_id == 0 else -ESRCH


def _watchdog(vcpu: Vcpu, arg: int, bits: int) -> int:
    """Start one (id 0; the answer is its id), feed or stop (timeout 0) one."""
    op = guest.get(vcpu, abi.WATCHDOG_ARG, arg, bits)
    timers = vcpu.domain.timers
    if op.id > WATCHDOGS:
        return -EINVAL
    deadline = vcpu.domain.machine.now_ns() + op.timeout * _NS
    if op.id == 0:
        if op.timeout == 0:
            return -EINVAL
        for index, running in enumerate(timers.watchdogs):
            if running is None:
                timers.set_watchdog(index, deadline)
                return index + 1
        return -EEXIST
    if timers.watchdogs[op.id - 1] is None:
        return -EINVAL
    timers.set_watchdog(op.id - 1, deadline if op.timeout else None)
    return 0


def _pin_override(vcpu: Vcpu, arg: int, bits: int) -> int:
    return -EPERM


_OPS: dict[int, Callable[[Vcpu, int, int], int]] = {
    abi.YIELD: _yield,
    abi.BLOCK: _block,
    abi.SHUTDOWN: _shutdown,
    abi.POLL: _poll,
    abi.REMOTE_SHUTDOWN: _remote_shutdown,
    abi.SHUTDOWN_CODE: _shutdown_code,
    abi.WATCHDOG: _watchdog,
    abi.PIN_OVERRIDE: _pin_override,
}


def handle(vcpu: Vcpu, args: tuple[int, ...], bits: int) -> int:
    """(cmd, pointer)."""
    operation = _OPS.get(args[0] & 0xFFFFFFFF)
    return operation(vcpu, args[1], bits) if operation is not None else -ENOSYS

"""EVENT_CHANNEL_OP: the guest's side of event channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pyxen.abi import event_channel as abi
from pyxen.abi.errno import EINVAL, ENOSYS, EPERM, ESRCH, XenError
from pyxen.abi.shared_info import DOMID_SELF
from pyxen.hypervisor.evtchn import BackendPort, State
from pyxen.hypervisor.hypercalls import guest

if TYPE_CHECKING:
    from pyxen.hypervisor.vcpu import Vcpu


def _require_self(vcpu: Vcpu, domid: int) -> None:
    """The tool stack's rights over others are not the guest's; domains that aren't there are another error."""
    if not vcpu.domain.is_self(domid):
        raise XenError(EPERM if domid == 0 else ESRCH)


def _bind_interdomain(vcpu: Vcpu, arg: int) -> int:
    op = guest.get(vcpu, abi.BIND_INTERDOMAIN_ARG, arg, 64)
    remote = vcpu.domain.domid if op.remote_dom == DOMID_SELF else op.remote_dom
    port = vcpu.domain.evtchn.bind_interdomain(remote, op.remote_port)
    guest.put(vcpu, abi.BIND_INTERDOMAIN_ARG, arg, 64, "local_port", port)
    return 0


def _bind_virq(vcpu: Vcpu, arg: int) -> int:
    op = guest.get(vcpu, abi.BIND_VIRQ_ARG, arg, 64)
    port = vcpu.domain.evtchn.bind_virq(op.virq, op.vcpu)
    guest.put(vcpu, abi.BIND_VIRQ_ARG, arg, 64, "port", port)
    return 0


def _bind_pirq(vcpu: Vcpu, arg: int) -> int:
    guest.read(vcpu, arg, 12)
    # A PVH domain has no physical interrupts, so none is in range.
    return -EINVAL


def _close(vcpu: Vcpu, arg: int) -> int:
    vcpu.domain.evtchn.close(guest.get(vcpu, abi.PORT_ARG, arg, 64).port)
    return 0


def _send(vcpu: Vcpu, arg: int) -> int:
    # The one that counts: its argument is read without making a structure of it.
    vcpu.domain.evtchn.send(guest.u32(vcpu, arg))
    return 0


def _status(vcpu: Vcpu, arg: int) -> int:
    op = guest.get(vcpu, abi.STATUS_ARG, arg, 64)
    _require_self(vcpu, op.dom)
    channel = vcpu.domain.evtchn.get(op.port)
    answer = op._replace(status=abi.STATUS_CLOSED, vcpu=0)
    if channel is not None:
        answer = answer._replace(status=int(channel.state), vcpu=channel.vcpu)
        if channel.state is State.UNBOUND:
            answer = answer._replace(word0=channel.remote)
        elif channel.state is State.INTERDOMAIN:
            # A back end's own port number means nothing to the guest; Domain-0 has as many as it likes.
            port = channel.port if isinstance(channel.peer, BackendPort) or channel.peer is None else channel.peer.port
            answer = answer._replace(word0=channel.remote, word1=port)
        elif channel.state is State.VIRQ:
            answer = answer._replace(word0=channel.virq)
    guest.write(vcpu, arg, abi.STATUS_ARG.pack(answer, 64))
    return 0


def _alloc_unbound(vcpu: Vcpu, arg: int) -> int:
    op = guest.get(vcpu, abi.ALLOC_UNBOUND_ARG, arg, 64)
    _require_self(vcpu, op.dom)
    remote = vcpu.domain.domid if op.remote_dom == DOMID_SELF else op.remote_dom
    port = vcpu.domain.evtchn.alloc_unbound(remote)
    guest.put(vcpu, abi.ALLOC_UNBOUND_ARG, arg, 64, "port", port)
    return 0


def _bind_ipi(vcpu: Vcpu, arg: int) -> int:
    op = guest.get(vcpu, abi.BIND_IPI_ARG, arg, 64)
    port = vcpu.domain.evtchn.bind_ipi(op.vcpu)
    guest.put(vcpu, abi.BIND_IPI_ARG, arg, 64, "port", port)
    return 0


def _bind_vcpu(vcpu: Vcpu, arg: int) -> int:
    op = guest.get(vcpu, abi.BIND_VCPU_ARG, arg, 64)
    vcpu.domain.evtchn.bind_vcpu(op.port, op.vcpu)
    return 0


def _unmask(vcpu: Vcpu, arg: int) -> int:
    vcpu.domain.evtchn.unmask(guest.get(vcpu, abi.PORT_ARG, arg, 64).port)
    return 0


def _reset(vcpu: Vcpu, arg: int) -> int:
    _require_self(vcpu, guest.get(vcpu, abi.RESET_ARG, arg, 64).dom)
    vcpu.domain.evtchn.reset()
    return 0


def _init_control(vcpu: Vcpu, arg: int) -> int:
    op = guest.get(vcpu, abi.INIT_CONTROL_ARG, arg, 64)
    vcpu.domain.evtchn.init_control(op.vcpu, op.control_gfn, op.offset)
    guest.put(vcpu, abi.INIT_CONTROL_ARG, arg, 64, "link_bits", abi.FIFO_LINK_BITS)
    return 0


def _expand_array(vcpu: Vcpu, arg: int) -> int:
    vcpu.domain.evtchn.expand_array(guest.get(vcpu, abi.EXPAND_ARRAY_ARG, arg, 64).array_gfn)
    return 0


def _set_priority(vcpu: Vcpu, arg: int) -> int:
    op = guest.get(vcpu, abi.SET_PRIORITY_ARG, arg, 64)
    vcpu.domain.evtchn.set_priority(op.port, op.priority)
    return 0


_OPS: dict[int, Callable[[Vcpu, int], int]] = {
    abi.BIND_INTERDOMAIN: _bind_interdomain,
    abi.BIND_VIRQ: _bind_virq,
    abi.BIND_PIRQ: _bind_pirq,
    abi.CLOSE: _close,
    abi.SEND: _send,
    abi.STATUS: _status,
    abi.ALLOC_UNBOUND: _alloc_unbound,
    abi.BIND_IPI: _bind_ipi,
    abi.BIND_VCPU: _bind_vcpu,
    abi.UNMASK: _unmask,
    abi.RESET: _reset,
    abi.INIT_CONTROL: _init_control,
    abi.EXPAND_ARRAY: _expand_array,
    abi.SET_PRIORITY: _set_priority,
}


def handle(vcpu: Vcpu, args: tuple[int, ...], bits: int) -> int:
    """(cmd, pointer). Every structure is the same for 64-bit and 32-bit callers."""
    operation = _OPS.get(args[0] & 0xFFFFFFFF)
    return operation(vcpu, args[1]) if operation is not None else -ENOSYS


def handle_compat(vcpu: Vcpu, args: tuple[int, ...], bits: int) -> int:
    """The old form: a pointer to {cmd u32, a union of the first ten structures}."""
    cmd = int.from_bytes(guest.read(vcpu, args[0], 4), "little")
    return handle(vcpu, (cmd, args[0] + 4), bits) if cmd <= abi.UNMASK else -ENOSYS

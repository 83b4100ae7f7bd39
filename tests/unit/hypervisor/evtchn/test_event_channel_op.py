"""EVENT_CHANNEL_OP by a scripted guest: what each operation does, and each way in which it refuses."""

from __future__ import annotations

import pytest

from pyxen.abi import errno
from pyxen.abi import event_channel as abi
from pyxen.abi.errno import XenError
from pyxen.abi.hvm import EVTCHN_UPCALL_VECTOR_ARG, SET_EVTCHN_UPCALL_VECTOR, EvtchnUpcallVector
from pyxen.abi.hypercall import EVENT_CHANNEL_OP, EVENT_CHANNEL_OP_COMPAT, HVM_OP
from pyxen.abi.shared_info import DOMID_SELF, LAYOUTS
from tests.unit.hypervisor.hypercalls.scripted import DOMID, NOWHERE, ScriptedGuest


@pytest.fixture(params=[64, 32])
def guest(request: pytest.FixtureRequest) -> ScriptedGuest:
    guest = ScriptedGuest(vcpus=2, bits=request.param)
    guest.place_shared_info()
    for vcpu in range(2):
        value = EvtchnUpcallVector(vcpu, 0xF3)
        assert guest.op(HVM_OP, SET_EVTCHN_UPCALL_VECTOR, EVTCHN_UPCALL_VECTOR_ARG, value)[0] == 0
    guest.machine.upcalls.clear()
    return guest


def alloc_unbound(guest: ScriptedGuest, remote: int = 0) -> int:
    value = abi.AllocUnbound(DOMID_SELF, remote, 0xFFFF)
    result, answer = guest.op(EVENT_CHANNEL_OP, abi.ALLOC_UNBOUND, abi.ALLOC_UNBOUND_ARG, value)
    assert result == 0
    return answer.port


def bind_ipi(guest: ScriptedGuest, vcpu: int) -> int:
    result, answer = guest.op(EVENT_CHANNEL_OP, abi.BIND_IPI, abi.BIND_IPI_ARG, abi.BindIpi(vcpu, 0))
    assert result == 0
    return answer.port


def bind_virq(guest: ScriptedGuest, virq: int, vcpu: int) -> tuple[int, int]:
    result, answer = guest.op(EVENT_CHANNEL_OP, abi.BIND_VIRQ, abi.BIND_VIRQ_ARG, abi.BindVirq(virq, vcpu, 0))
    return result, answer.port


def port_op(guest: ScriptedGuest, cmd: int, port: int) -> int:
    return guest.op(EVENT_CHANNEL_OP, cmd, abi.PORT_ARG, abi.Port(port))[0]


def status(guest: ScriptedGuest, port: int, dom: int = DOMID_SELF) -> tuple[int, abi.Status]:
    return guest.op(EVENT_CHANNEL_OP, abi.STATUS, abi.STATUS_ARG, abi.Status(dom, port, 99, 99, 0, 0))


def is_pending(guest: ScriptedGuest, port: int) -> bool:
    info = guest.domain.shared_info
    return bool(info.page.view[LAYOUTS[guest.bits].pending + port // 8] >> port % 8 & 1)


def selected(guest: ScriptedGuest, vcpu: int) -> int:
    """The VCPU's pending_sel."""
    layout = LAYOUTS[guest.bits]
    at = vcpu * 64 + layout.pending_sel
    return int.from_bytes(guest.domain.shared_info.page.view[at : at + guest.bits // 8], "little")


def mask(guest: ScriptedGuest, port: int) -> None:
    guest.domain.shared_info.page.view[LAYOUTS[guest.bits].mask + port // 8] |= 1 << port % 8


def nothing() -> None:
    pass


def test_ports_start_at_one_and_a_closed_one_is_used_again(guest: ScriptedGuest) -> None:
    assert [alloc_unbound(guest) for _ in range(3)] == [1, 2, 3]
    assert port_op(guest, abi.CLOSE, 2) == 0
    assert port_op(guest, abi.CLOSE, 2) == -errno.EINVAL
    assert alloc_unbound(guest) == 2


@pytest.mark.parametrize("port", [0, 5, 4096, 0xFFFFFFFF])
@pytest.mark.parametrize("cmd", [abi.CLOSE, abi.SEND])
def test_ports_that_are_not_open_are_refused(guest: ScriptedGuest, cmd: int, port: int) -> None:
    assert port_op(guest, cmd, port) == -errno.EINVAL


def test_ports_run_out(guest: ScriptedGuest) -> None:
    limit = {64: abi.MAX_PORTS_2L_64, 32: abi.MAX_PORTS_2L_32}[guest.bits]
    for _ in range(limit - 1):
        guest.domain.evtchn.alloc_unbound()
    value = abi.AllocUnbound(DOMID_SELF, 0, 0)
    assert guest.op(EVENT_CHANNEL_OP, abi.ALLOC_UNBOUND, abi.ALLOC_UNBOUND_ARG, value)[0] == -errno.ENOSPC


def test_ports_of_other_domains_are_refused(guest: ScriptedGuest) -> None:
    for domid, expected in ((0, errno.EPERM), (9, errno.ESRCH)):
        value = abi.AllocUnbound(domid, 0, 0)
        assert guest.op(EVENT_CHANNEL_OP, abi.ALLOC_UNBOUND, abi.ALLOC_UNBOUND_ARG, value)[0] == -expected
        assert status(guest, 1, domid)[0] == -expected
        reset = abi.Reset(domid)
        assert guest.op(EVENT_CHANNEL_OP, abi.RESET, abi.RESET_ARG, reset)[0] == -expected


def test_a_back_end_and_the_guest_reach_each_other(guest: ScriptedGuest) -> None:
    heard: list[int] = []
    port = alloc_unbound(guest)
    backend = guest.domain.evtchn.bind_backend(port, lambda: heard.append(1))
    assert heard == [1], "what was sent before may be lost: the back end looks once"
    assert port_op(guest, abi.SEND, port) == 0
    assert heard == [1, 1]
    assert not is_pending(guest, port)

    backend.notify()
    assert is_pending(guest, port)
    assert selected(guest, 0) == 1
    assert guest.domain.vcpus[0].upcall_pending
    assert guest.machine.upcalls == [(0, 0xF3)]
    backend.notify()
    assert guest.machine.upcalls == [(0, 0xF3)], "one upcall until the guest has seen it"


def test_a_closed_port_leaves_its_back_end_alone(guest: ScriptedGuest) -> None:
    port = alloc_unbound(guest)
    backend = guest.domain.evtchn.bind_backend(port, nothing)
    assert backend.connected
    assert port_op(guest, abi.CLOSE, port) == 0
    assert not backend.connected
    assert alloc_unbound(guest) == port
    backend.notify()
    backend.close()
    assert not is_pending(guest, port), "an old back end must not reach the port's next owner"


def test_a_back_end_that_left_makes_room_for_another(guest: ScriptedGuest) -> None:
    port = alloc_unbound(guest)
    guest.domain.evtchn.bind_backend(port, nothing).close()
    assert port_op(guest, abi.SEND, port) == 0, "nobody hears it, which is no error"
    assert guest.domain.evtchn.bind_backend(port, nothing).connected


def test_a_back_end_takes_only_what_is_offered_to_it(guest: ScriptedGuest) -> None:
    taken = alloc_unbound(guest)
    guest.domain.evtchn.bind_backend(taken, nothing)
    for port in (0, 99, taken, bind_ipi(guest, 0), alloc_unbound(guest, remote=DOMID_SELF), alloc_unbound(guest, 3)):
        with pytest.raises(XenError) as error:
            guest.domain.evtchn.bind_backend(port, nothing)
        assert error.value.errno == errno.EINVAL


def test_a_masked_port_waits_until_it_is_unmasked(guest: ScriptedGuest) -> None:
    port = alloc_unbound(guest)
    backend = guest.domain.evtchn.bind_backend(port, nothing)
    mask(guest, port)
    backend.notify()
    assert is_pending(guest, port)
    assert selected(guest, 0) == 0
    assert guest.machine.upcalls == []
    assert port_op(guest, abi.UNMASK, port) == 0
    assert selected(guest, 0) == 1
    assert guest.machine.upcalls == [(0, 0xF3)]


@pytest.mark.parametrize(("port", "expected"), [(0, 0), (77, 0), (4096, -errno.EINVAL), (2**32 - 1, -errno.EINVAL)])
def test_unmasking_a_closed_port_does_nothing(guest: ScriptedGuest, port: int, expected: int) -> None:
    assert port_op(guest, abi.UNMASK, port) == expected
    assert guest.machine.upcalls == []


def test_events_go_to_the_vcpu_that_is_bound(guest: ScriptedGuest) -> None:
    port = alloc_unbound(guest)
    backend = guest.domain.evtchn.bind_backend(port, nothing)
    value = abi.BindVcpu(port, 1)
    assert guest.op(EVENT_CHANNEL_OP, abi.BIND_VCPU, abi.BIND_VCPU_ARG, value)[0] == 0
    backend.notify()
    assert (selected(guest, 0), selected(guest, 1)) == (0, 1)
    assert guest.machine.upcalls == [(1, 0xF3)]


def test_ports_that_belong_to_a_vcpu_stay_there(guest: ScriptedGuest) -> None:
    timer = bind_virq(guest, abi.VIRQ_TIMER, 1)[1]
    argo = bind_virq(guest, abi.VIRQ_ARGO, 0)[1]
    for port, vcpu, expected in (
        (bind_ipi(guest, 0), 1, -errno.EINVAL),
        (timer, 0, -errno.EINVAL),
        (argo, 1, 0),
        (argo, 2, -errno.ENOENT),
        (99, 1, -errno.EINVAL),
    ):
        value = abi.BindVcpu(port, vcpu)
        assert guest.op(EVENT_CHANNEL_OP, abi.BIND_VCPU, abi.BIND_VCPU_ARG, value)[0] == expected


def test_ipis_interrupt_their_vcpu(guest: ScriptedGuest) -> None:
    port = bind_ipi(guest, 1)
    assert port_op(guest, abi.SEND, port) == 0
    assert is_pending(guest, port)
    assert guest.machine.upcalls == [(1, 0xF3)]
    assert guest.op(EVENT_CHANNEL_OP, abi.BIND_IPI, abi.BIND_IPI_ARG, abi.BindIpi(2, 0))[0] == -errno.ENOENT


@pytest.mark.parametrize(
    ("virq", "vcpu", "expected"),
    [
        (abi.VIRQ_TIMER, 0, 0),
        (abi.VIRQ_TIMER, 1, 0),
        (abi.VIRQ_DEBUG, 1, 0),
        (abi.VIRQ_ARGO, 0, 0),
        (abi.VIRQ_ARGO, 1, -errno.EINVAL),
        (abi.VIRQ_CONSOLE, 0, -errno.EBUSY),
        (abi.VIRQ_CONSOLE, 1, -errno.EINVAL),
        (abi.VIRQ_TIMER, 2, -errno.ENOENT),
        (24, 0, -errno.EINVAL),
        (0xFFFFFFFF, 0, -errno.EINVAL),
    ],
)
def test_virqs_are_bound_where_they_belong(guest: ScriptedGuest, virq: int, vcpu: int, expected: int) -> None:
    assert bind_virq(guest, virq, vcpu)[0] == expected


def test_a_virq_is_bound_once_for_each_vcpu(guest: ScriptedGuest) -> None:
    port = bind_virq(guest, abi.VIRQ_TIMER, 1)[1]
    assert bind_virq(guest, abi.VIRQ_TIMER, 1)[0] == -errno.EEXIST
    assert port_op(guest, abi.SEND, port) == -errno.EINVAL, "only Xen raises it"
    assert guest.domain.evtchn.raise_virq(abi.VIRQ_TIMER, 1)
    assert is_pending(guest, port)
    assert port_op(guest, abi.CLOSE, port) == 0
    assert not is_pending(guest, port)
    assert not guest.domain.evtchn.raise_virq(abi.VIRQ_TIMER, 1)
    assert bind_virq(guest, abi.VIRQ_TIMER, 1)[0] == 0


def test_physical_interrupts_are_out_of_range(guest: ScriptedGuest) -> None:
    assert guest.call(EVENT_CHANNEL_OP, abi.BIND_PIRQ, guest.store(bytes(12))) == -errno.EINVAL
    assert guest.call(EVENT_CHANNEL_OP, abi.BIND_PIRQ, NOWHERE) == -errno.EFAULT


def test_a_guest_may_talk_to_itself(guest: ScriptedGuest) -> None:
    remote = alloc_unbound(guest, remote=DOMID_SELF)
    value = abi.BindInterdomain(DOMID_SELF, remote, 0)
    result, answer = guest.op(EVENT_CHANNEL_OP, abi.BIND_INTERDOMAIN, abi.BIND_INTERDOMAIN_ARG, value)
    assert result == 0
    local = answer.local_port
    assert is_pending(guest, local), "what was sent before may be lost"
    assert port_op(guest, abi.SEND, local) == 0
    assert is_pending(guest, remote)
    assert status(guest, local)[1][2:] == (abi.STATUS_INTERDOMAIN, 0, DOMID, remote)
    assert port_op(guest, abi.CLOSE, local) == 0
    assert status(guest, remote)[1][2:5] == (abi.STATUS_UNBOUND, 0, DOMID)
    assert port_op(guest, abi.CLOSE, remote) == 0


@pytest.mark.parametrize(
    ("domid", "port", "expected"),
    [
        (0, 1, errno.EINVAL),
        (9, 1, errno.ESRCH),
        (DOMID_SELF, 0, errno.EINVAL),
        (DOMID_SELF, 1, errno.EINVAL),
        (DOMID_SELF, 2**32 - 1, errno.EINVAL),
    ],
)
def test_ports_that_are_not_offered_cannot_be_bound(guest: ScriptedGuest, domid: int, port: int, expected: int) -> None:
    assert alloc_unbound(guest) == 1  # for Domain-0, not for the guest itself
    value = abi.BindInterdomain(domid, port, 0)
    result = guest.op(EVENT_CHANNEL_OP, abi.BIND_INTERDOMAIN, abi.BIND_INTERDOMAIN_ARG, value)[0]
    assert result == -expected
    assert alloc_unbound(guest) == 2, "a refusal must not cost a port"


def test_status_tells_what_a_port_is(guest: ScriptedGuest) -> None:
    unbound, ipi = alloc_unbound(guest, 3), bind_ipi(guest, 1)
    virq, connected = bind_virq(guest, abi.VIRQ_DEBUG, 1)[1], alloc_unbound(guest)
    guest.domain.evtchn.bind_backend(connected, nothing)
    assert status(guest, unbound)[1][2:5] == (abi.STATUS_UNBOUND, 0, 3)
    assert status(guest, ipi)[1][2:4] == (abi.STATUS_IPI, 1)
    assert status(guest, virq)[1][2:5] == (abi.STATUS_VIRQ, 1, abi.VIRQ_DEBUG)
    assert status(guest, connected)[1][2:5] == (abi.STATUS_INTERDOMAIN, 0, 0)
    assert status(guest, 99)[1][2:4] == (abi.STATUS_CLOSED, 0)
    assert status(guest, 4096)[0] == -errno.EINVAL


def test_a_reset_closes_everything(guest: ScriptedGuest) -> None:
    port = alloc_unbound(guest)
    backend = guest.domain.evtchn.bind_backend(port, nothing)
    bind_virq(guest, abi.VIRQ_TIMER, 0)
    remote = alloc_unbound(guest, remote=DOMID_SELF)
    value = abi.BindInterdomain(DOMID_SELF, remote, 0)
    guest.op(EVENT_CHANNEL_OP, abi.BIND_INTERDOMAIN, abi.BIND_INTERDOMAIN_ARG, value)
    assert guest.op(EVENT_CHANNEL_OP, abi.RESET, abi.RESET_ARG, abi.Reset(DOMID_SELF))[0] == 0
    assert not backend.connected
    assert list(guest.domain.evtchn) == []
    assert bind_virq(guest, abi.VIRQ_TIMER, 0)[0] == 0


def test_two_level_events_have_no_priorities(guest: ScriptedGuest) -> None:
    port = alloc_unbound(guest)
    value = abi.SetPriority(port, 0)
    assert guest.op(EVENT_CHANNEL_OP, abi.SET_PRIORITY, abi.SET_PRIORITY_ARG, value)[0] == -errno.ENOSYS


@pytest.mark.parametrize("cmd", sorted(set(range(14)) - {abi.BIND_PIRQ}))
def test_structures_that_are_not_mapped_are_faults(guest: ScriptedGuest, cmd: int) -> None:
    assert guest.call(EVENT_CHANNEL_OP, cmd, NOWHERE) == -errno.EFAULT


@pytest.mark.parametrize("cmd", [abi.RESET_CONT, 15, 0xFFFFFFFF])
def test_unknown_operations_are_not_there(guest: ScriptedGuest, cmd: int) -> None:
    assert guest.call(EVENT_CHANNEL_OP, cmd, NOWHERE) == -errno.ENOSYS


def test_an_answer_that_cannot_be_written_is_a_fault(guest: ScriptedGuest) -> None:
    address = guest.store(abi.ALLOC_UNBOUND_ARG.pack(abi.AllocUnbound(DOMID_SELF, 0, 0), 64))
    guest.machine.read_only.add(address // 4096)
    assert guest.call(EVENT_CHANNEL_OP, abi.ALLOC_UNBOUND, address) == -errno.EFAULT


def test_the_old_form_puts_the_operation_before_the_structure(guest: ScriptedGuest) -> None:
    port = bind_ipi(guest, 0)
    assert (
        guest.call(EVENT_CHANNEL_OP_COMPAT, guest.store(abi.SEND.to_bytes(4, "little") + bytes([port, 0, 0, 0]))) == 0
    )
    assert is_pending(guest, port)
    late = guest.store(abi.RESET.to_bytes(4, "little"))
    assert guest.call(EVENT_CHANNEL_OP_COMPAT, late) == -errno.ENOSYS
    assert guest.call(EVENT_CHANNEL_OP_COMPAT, NOWHERE) == -errno.EFAULT


def test_high_ports_select_their_own_word(guest: ScriptedGuest) -> None:
    ports = [guest.domain.evtchn.alloc_unbound() for _ in range(200)]
    backend = guest.domain.evtchn.bind_backend(ports[-1], nothing)
    backend.notify()
    assert is_pending(guest, 200)
    assert selected(guest, 0) == 1 << 200 // guest.bits


def test_the_upcall_vector_of_a_vcpu_comes_before_the_domains(guest: ScriptedGuest) -> None:
    guest.domain.callback_vector = 0x40
    guest.domain.vcpus[0].upcall_vector = 0
    assert [port_op(guest, abi.SEND, bind_ipi(guest, vcpu)) for vcpu in (0, 1)] == [0, 0]
    assert guest.machine.injected == [(0, 0x40)]
    assert guest.machine.upcalls == [(1, 0xF3)]


def test_closing_what_belongs_to_a_vcpu_tells_that_it_may_have_gone(guest: ScriptedGuest) -> None:
    left: list[int] = []
    guest.domain.evtchn.vcpu_left = left.append
    ipi = bind_ipi(guest, 1)
    _, timer = bind_virq(guest, abi.VIRQ_TIMER, 1)
    other = alloc_unbound(guest)
    for port in (ipi, timer, other):
        assert port_op(guest, abi.CLOSE, port) == 0
    assert left == [1, 1]

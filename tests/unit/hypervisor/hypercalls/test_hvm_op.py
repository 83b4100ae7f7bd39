"""HVM_OP by a scripted guest."""

from __future__ import annotations

import pytest

from pyxen.abi import errno
from pyxen.abi import hvm as abi
from pyxen.abi.hypercall import HVM_OP
from pyxen.abi.shared_info import DOMID_SELF
from tests.unit.hypervisor.hypercalls.scripted import DOMID, NOWHERE, OUTSIDE, ScriptedGuest


@pytest.fixture(params=[64, 32])
def guest(request: pytest.FixtureRequest) -> ScriptedGuest:
    return ScriptedGuest(bits=request.param)


def set_param(guest: ScriptedGuest, number: int, value: int, domid: int = DOMID_SELF) -> int:
    return guest.op(HVM_OP, abi.SET_PARAM, abi.PARAM_ARG, abi.Param(domid, number, value))[0]


def get_param(guest: ScriptedGuest, number: int, domid: int = DOMID_SELF) -> tuple[int, int]:
    result, answer = guest.op(HVM_OP, abi.GET_PARAM, abi.PARAM_ARG, abi.Param(domid, number, 0xEEEE))
    return result, answer.value


def test_the_console_and_the_store_are_found(guest: ScriptedGuest) -> None:
    console, store = guest.domain.set_up_special_pages(console_gfn=0x300, store_gfn=0x301)
    assert [get_param(guest, number) for number in (17, 18, 1, 2)] == [(0, 0x300), (0, console), (0, 0x301), (0, store)]
    assert (guest.domain.console_gfn, guest.domain.store_gfn) == (0x300, 0x301)
    assert guest.domain.evtchn.bind_backend(store, lambda: None).connected
    guest.memory.write(0x301 << 12, b"ring")
    assert bytes(guest.domain.grants.map(1, write=True)[:4]) == b"ring"


@pytest.mark.parametrize("number", sorted(abi.GUEST_MAY_SET - {abi.PARAM_CALLBACK_IRQ, abi.PARAM_X87_FIP_WIDTH}))
def test_what_a_guest_may_set_it_can_read(guest: ScriptedGuest, number: int) -> None:
    assert set_param(guest, number, 0x1234567890) == 0
    assert get_param(guest, number, DOMID) == (0, 0x1234567890)


@pytest.mark.parametrize("number", range(39))
def test_every_parameter_has_its_rights(guest: ScriptedGuest, number: int) -> None:
    readable = number in abi.GUEST_MAY_GET
    expected = -errno.EINVAL if number in abi.DEPRECATED else 0 if readable else -errno.EPERM
    assert get_param(guest, number)[0] == expected
    if number in abi.GUEST_MAY_SET:
        assert set_param(guest, number, 0) == 0
    elif number == abi.PARAM_ALTP2M:
        assert set_param(guest, number, 0) == -errno.EEXIST
    else:
        assert set_param(guest, number, 0) == (-errno.EINVAL if number in abi.DEPRECATED else -errno.EPERM)


@pytest.mark.parametrize("number", [39, 0xFFFFFFFF])
def test_parameters_end(guest: ScriptedGuest, number: int) -> None:
    assert get_param(guest, number)[0] == set_param(guest, number, 0) == -errno.EINVAL


@pytest.mark.parametrize(("domid", "expected"), [(0, errno.EPERM), (9, errno.ESRCH)])
def test_other_domains_parameters_are_not_the_guests(guest: ScriptedGuest, domid: int, expected: int) -> None:
    assert get_param(guest, 0, domid)[0] == set_param(guest, 0, 0, domid) == -expected


def test_the_x87_width_is_one_that_is_there(guest: ScriptedGuest) -> None:
    assert [set_param(guest, abi.PARAM_X87_FIP_WIDTH, width) for width in (0, 4, 8, 5)] == [0, 0, 0, -errno.EINVAL]


def test_a_callback_vector_is_injected_on_every_vcpu(guest: ScriptedGuest) -> None:
    with guest.domain.lock:
        guest.domain.vcpus[1].mark_events_pending()
    assert set_param(guest, abi.PARAM_CALLBACK_IRQ, 2 << 56 | 0xF3) == 0
    assert guest.machine.injected == [(1, 0xF3)], "what was noted before is delivered now"
    assert guest.domain.shared_info.bits == guest.bits
    assert set_param(guest, abi.PARAM_CALLBACK_IRQ, 1) == 0
    assert guest.domain.callback_vector == 0
    assert set_param(guest, abi.PARAM_CALLBACK_IRQ, 2 << 56 | 0x0F) == -errno.EINVAL


def upcall_vector(guest: ScriptedGuest, vcpu: int, vector: int) -> int:
    value = abi.EvtchnUpcallVector(vcpu, vector)
    return guest.op(HVM_OP, abi.SET_EVTCHN_UPCALL_VECTOR, abi.EVTCHN_UPCALL_VECTOR_ARG, value)[0]


def test_a_vcpus_own_vector_delivers_what_was_noted_before(guest: ScriptedGuest) -> None:
    with guest.domain.lock:
        guest.domain.vcpus[1].mark_events_pending()
    assert upcall_vector(guest, 0, 0xF3) == 0
    assert guest.machine.upcalls == []
    assert upcall_vector(guest, 1, 0xF4) == 0
    assert guest.machine.upcalls == [(1, 0xF4)]


@pytest.mark.parametrize(
    ("vcpu", "vector", "expected"), [(0, 15, errno.EINVAL), (2, 16, errno.ENOENT), (2**32 - 1, 255, 2)]
)
def test_a_wrong_vector_or_vcpu_is_refused(guest: ScriptedGuest, vcpu: int, vector: int, expected: int) -> None:
    assert upcall_vector(guest, vcpu, vector) == -expected


def test_time_is_told(guest: ScriptedGuest) -> None:
    assert guest.op(HVM_OP, abi.GET_TIME, abi.GET_TIME_ARG, abi.GetTime(0)) == (0, (guest.machine.now,))


def test_memory_has_a_type(guest: ScriptedGuest) -> None:
    for gfn, expected in ((0x300, abi.MEM_RAM_RW), (0xA5, abi.MEM_MMIO_DM), (2**64 - 1, abi.MEM_MMIO_DM)):
        value = abi.GetMemType(DOMID_SELF, 9, 0, 0, gfn)
        result, answer = guest.op(HVM_OP, abi.GET_MEM_TYPE, abi.GET_MEM_TYPE_ARG, value)
        assert (result, answer.mem_type) == (0, expected)
    place = guest.place_shared_info() >> 12
    assert place != OUTSIDE
    value = abi.GetMemType(DOMID_SELF, 9, 0, 0, place)
    assert guest.op(HVM_OP, abi.GET_MEM_TYPE, abi.GET_MEM_TYPE_ARG, value)[1].mem_type == abi.MEM_RAM_RW
    for domid, expected in ((0, errno.EPERM), (9, errno.ESRCH)):
        value = abi.GetMemType(domid, 0, 0, 0, 0)
        assert guest.op(HVM_OP, abi.GET_MEM_TYPE, abi.GET_MEM_TYPE_ARG, value)[0] == -expected


def test_shadow_page_tables_are_not_there(guest: ScriptedGuest) -> None:
    for domid, expected in ((DOMID_SELF, errno.EINVAL), (0, errno.EOPNOTSUPP)):
        value = abi.PagetableDying(domid, 0, 0, 0, 0)
        assert guest.op(HVM_OP, abi.PAGETABLE_DYING, abi.PAGETABLE_DYING_ARG, value)[0] == -expected
    assert guest.call(HVM_OP, abi.FLUSH_TLBS, 0) == -errno.ENOSYS
    assert guest.call(HVM_OP, abi.FLUSH_TLBS, 1) == -errno.EINVAL


@pytest.mark.parametrize("cmd", [0, 1, 9, 10, 15, 23])
def test_structures_that_are_not_mapped_are_faults(guest: ScriptedGuest, cmd: int) -> None:
    assert guest.call(HVM_OP, cmd, NOWHERE) == -errno.EFAULT


@pytest.mark.parametrize("cmd", [2, abi.XENTRACE, abi.ALTP2M, 26])
def test_unknown_operations_are_not_there(guest: ScriptedGuest, cmd: int) -> None:
    assert guest.call(HVM_OP, cmd, 0) == -errno.ENOSYS

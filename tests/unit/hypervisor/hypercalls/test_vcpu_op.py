"""VCPU_OP and SET_TIMER_OP by a scripted guest."""

from __future__ import annotations

import pytest

from pyxen.abi import errno
from pyxen.abi import vcpu as abi
from pyxen.abi.event_channel import BIND_VIRQ, BIND_VIRQ_ARG, VIRQ_TIMER, BindVirq
from pyxen.abi.hypercall import (
    EVENT_CHANNEL_OP,
    SET_TIMER_OP,
    VCPU_OP,
    VM_ASSIST,
    VM_ASSIST_DISABLE,
    VM_ASSIST_ENABLE,
    VM_ASSIST_RUNSTATE_UPDATE_FLAG,
)
from pyxen.abi.sched import SHUTDOWN_POWEROFF
from pyxen.abi.shared_info import TIME
from tests.unit.hypervisor.hypercalls.registers import FLAT, LONG_MODE
from tests.unit.hypervisor.hypercalls.scripted import NOWHERE, PAGE, SIZE, ScriptedGuest


@pytest.fixture(params=[64, 32])
def guest(request: pytest.FixtureRequest) -> ScriptedGuest:
    guest = ScriptedGuest(vcpus=3, bits=request.param)
    guest.place_shared_info()
    return guest


def initialise(guest: ScriptedGuest, context: abi.VcpuContext, mode: int | None = None, vcpu: int = 1) -> int:
    if isinstance(context, abi.Context64):
        mode = abi.MODE_64B if mode is None else mode
        data = abi.CONTEXT_64.pack(context, 64)
    else:
        mode = abi.MODE_32B if mode is None else mode
        data = abi.CONTEXT_32.pack(context, 64)
    data = abi.CONTEXT_HEADER.pack(abi.ContextHeader(mode, 0), 64) + data
    return guest.call(VCPU_OP, abi.INITIALISE, vcpu, guest.store(data.ljust(abi.CONTEXT_SIZE, b"\0")))


@pytest.mark.parametrize("cmd", range(16))
def test_vcpus_that_are_not_there_are_refused(guest: ScriptedGuest, cmd: int) -> None:
    assert guest.call(VCPU_OP, cmd, 3, NOWHERE) == -errno.ENOENT
    assert guest.call(VCPU_OP, cmd, 0xFFFFFFFF, NOWHERE) == -errno.ENOENT


@pytest.mark.parametrize("cmd", [0, 4, 6, 8, 10, 14, 15])
def test_structures_that_are_not_mapped_are_faults(guest: ScriptedGuest, cmd: int) -> None:
    assert guest.call(VCPU_OP, cmd, 0, NOWHERE) == -errno.EFAULT


def test_unknown_operations_are_not_there(guest: ScriptedGuest) -> None:
    assert guest.call(VCPU_OP, 16, 0, 0) == -errno.ENOSYS
    assert guest.call(VCPU_OP, abi.GET_PHYSID, 0, 0) == -errno.EINVAL


@pytest.mark.parametrize("context", [LONG_MODE, FLAT])
def test_a_vcpu_starts_with_the_registers_it_was_given(guest: ScriptedGuest, context: abi.VcpuContext) -> None:
    assert guest.call(VCPU_OP, abi.UP, 1, 0) == -errno.EINVAL
    assert guest.call(VCPU_OP, abi.IS_UP, 1, 0) == 0
    assert initialise(guest, context) == 0
    assert initialise(guest, context) == -errno.EEXIST
    assert guest.call(VCPU_OP, abi.UP, 1, 0) == 0
    assert guest.machine.contexts == {1: context}
    assert guest.call(VCPU_OP, abi.IS_UP, 1, 0) == 1


def test_a_vcpu_that_was_down_goes_on_where_it_stopped(guest: ScriptedGuest) -> None:
    assert initialise(guest, LONG_MODE) == 0
    assert guest.call(VCPU_OP, abi.UP, 1, 0) == 0
    assert guest.call(VCPU_OP, abi.DOWN, 1, 0) == 0
    assert not guest.machine.up[1]
    assert guest.call(VCPU_OP, abi.UP, 1, 0) == 0
    assert guest.machine.contexts == {1: None}


def test_the_last_vcpu_going_down_is_the_end(guest: ScriptedGuest) -> None:
    assert guest.call(VCPU_OP, abi.DOWN, 0, 0) == 0
    assert guest.machine.reason == guest.domain.shutdown == SHUTDOWN_POWEROFF
    assert guest.machine.up[0]


@pytest.mark.parametrize(
    "context",
    [
        LONG_MODE._replace(cr0=0x11),
        LONG_MODE._replace(cr0=0x80000000),
        LONG_MODE._replace(cr4=0),
        LONG_MODE._replace(efer=0),
        LONG_MODE._replace(efer=0x100),
        LONG_MODE._replace(rip=1 << 47),
        FLAT._replace(cs_ar=0x1C9B),
        FLAT._replace(tr_ar=0x0B),
        FLAT._replace(cs_ar=0xC1B),
        FLAT._replace(pad1=1),
        FLAT._replace(pad2_2=1),
        FLAT._replace(cr0=0x80000000),
    ],
)
def test_registers_that_no_processor_takes_are_refused(guest: ScriptedGuest, context: abi.VcpuContext) -> None:
    assert initialise(guest, context) == -errno.EINVAL
    assert guest.call(VCPU_OP, abi.UP, 1, 0) == -errno.EINVAL


def test_a_mode_that_is_not_there_is_refused(guest: ScriptedGuest) -> None:
    assert initialise(guest, LONG_MODE, mode=2) == -errno.EINVAL
    assert initialise(guest, LONG_MODE, vcpu=0) == -errno.EEXIST


def test_nmis_are_passed_on(guest: ScriptedGuest) -> None:
    assert guest.call(VCPU_OP, abi.SEND_NMI, 2, 0) == 0
    assert guest.machine.nmis == [2]


# vcpu_info


def register_info(guest: ScriptedGuest, vcpu: int, mfn: int, offset: int) -> int:
    return guest.vcpu_op(abi.REGISTER_VCPU_INFO, vcpu, abi.REGISTER_VCPU_INFO_ARG, abi.RegisterVcpuInfo(mfn, offset, 0))


def test_vcpu_info_moves_and_every_event_is_looked_for(guest: ScriptedGuest) -> None:
    page = guest.page()
    guest.domain.vcpus[1].upcall_vector = 0xF3
    assert register_info(guest, 1, page, 128) == 0
    at = page * PAGE + 128
    assert guest.memory.u8(at) == 1
    assert guest.machine.upcalls == [(1, 0xF3)]
    start, width = (8, 8) if guest.bits == 64 else (4, 4)
    assert guest.memory.read(at + start, width) == b"\xff" * width
    assert guest.memory.read(at + start + width, 32 - start - width) == bytes(32 - start - width)
    assert guest.memory.u64(at + 32 + 8) == 1001, "its clock is right at once"
    assert register_info(guest, 1, page, 256) == -errno.EBUSY


@pytest.mark.parametrize(
    ("mfn", "offset", "expected"),
    [
        (0x300, PAGE - 63, errno.EINVAL),
        (0x300, 0xFFFFFFC0, errno.EINVAL),
        (0x300, 4, errno.ENXIO),
        (0x99999, 0, errno.EINVAL),
        (2**64 - 1, 0, errno.EINVAL),
    ],
)
def test_a_bad_place_for_vcpu_info_is_refused(guest: ScriptedGuest, mfn: int, offset: int, expected: int) -> None:
    assert register_info(guest, 1, mfn, offset) == -expected
    assert register_info(guest, 1, 0x300, PAGE - 64) == 0


def test_vcpus_beyond_those_in_shared_info_register_theirs() -> None:
    guest = ScriptedGuest(vcpus=34)
    guest.place_shared_info()
    vcpu = guest.domain.vcpus[33]
    with guest.domain.lock:
        vcpu.mark_events_pending()
    page = guest.page()
    assert register_info(guest, 33, page, 0) == 0
    assert guest.memory.u8(page * PAGE) == 1, "what came before is not lost"


# Areas


def register_area(guest: ScriptedGuest, cmd: int, address: int, vcpu: int = 0) -> int:
    return guest.vcpu_op(cmd, vcpu, abi.REGISTER_AREA_ARG, abi.RegisterArea(address))


@pytest.mark.parametrize("cmd", [abi.REGISTER_RUNSTATE_MEMORY_AREA, abi.REGISTER_RUNSTATE_PHYS_AREA])
def test_runstate_is_kept_up_to_date(guest: ScriptedGuest, cmd: int) -> None:
    address = 0x300 * PAGE
    assert register_area(guest, cmd, address) == 0
    layout = abi.RUNSTATE_INFO

    def shown() -> abi.RunstateInfo:
        return layout.unpack(guest.memory.view(address, layout.size(guest.bits)), guest.bits)

    assert (shown().state, shown().entry_time) == (abi.RUNSTATE_RUNNING, guest.machine.now)
    guest.machine.now += 500
    guest.domain.set_runstate(guest.domain.vcpus[0], abi.RUNSTATE_BLOCKED)
    assert (shown().state, shown().running) == (abi.RUNSTATE_BLOCKED, 500)
    guest.machine.now += 70
    info = guest.store(bytes(64))
    assert guest.call(VCPU_OP, abi.GET_RUNSTATE_INFO, 0, info) == 0
    told = layout.unpack(guest.memory.view(info, 48), guest.bits)
    assert (told.state, told.running, told.blocked) == (abi.RUNSTATE_BLOCKED, 500, 70)


def test_runstate_with_marked_updates_ends_unmarked(guest: ScriptedGuest) -> None:
    assert guest.call(VM_ASSIST, VM_ASSIST_ENABLE, VM_ASSIST_RUNSTATE_UPDATE_FLAG) == 0
    address = 0x301 * PAGE - 20
    assert register_area(guest, abi.REGISTER_RUNSTATE_MEMORY_AREA, address) == 0
    guest.machine.now += 5
    guest.domain.set_runstate(guest.domain.vcpus[0], abi.RUNSTATE_BLOCKED)
    data = guest.memory.read(address, 48)
    shown = abi.RUNSTATE_INFO.unpack(data, guest.bits)
    assert shown.entry_time == guest.machine.now
    assert guest.call(VM_ASSIST, VM_ASSIST_DISABLE, VM_ASSIST_RUNSTATE_UPDATE_FLAG) == 0
    assert not guest.domain.runstate_update_flag


def test_a_runstate_area_that_is_nowhere_is_accepted(guest: ScriptedGuest) -> None:
    assert register_area(guest, abi.REGISTER_RUNSTATE_MEMORY_AREA, NOWHERE & (1 << guest.bits) - 1) == 0
    assert register_area(guest, abi.REGISTER_RUNSTATE_MEMORY_AREA, 0) == 0
    guest.domain.set_runstate(guest.domain.vcpus[0], abi.RUNSTATE_BLOCKED)


def test_a_32_bit_guest_fills_in_half_of_the_pointer() -> None:
    guest = ScriptedGuest(bits=32)
    address = 0x300 * PAGE
    assert register_area(guest, abi.REGISTER_RUNSTATE_MEMORY_AREA, 0xDEADBEEF << 32 | address) == 0
    assert guest.memory.u64(address + 4) == guest.machine.now


@pytest.mark.parametrize("address", [0x300 * PAGE, 0x301 * PAGE - 12])
def test_the_second_clock_is_written_and_its_version_is_even(guest: ScriptedGuest, address: int) -> None:
    assert register_area(guest, abi.REGISTER_VCPU_TIME_MEMORY_AREA, address, vcpu=2) == 0
    first = abi.VCPU_TIME_INFO.unpack(guest.memory.view(address, 32), 64)
    assert (first.tsc_timestamp, first.system_time, first.flags) == (1002, guest.machine.now, 1)
    assert first.version % 2 == 0
    guest.machine.now += 1000
    guest.domain.update_time(2)
    second = abi.VCPU_TIME_INFO.unpack(guest.memory.view(address, 32), 64)
    assert second.system_time == guest.machine.now
    assert second.version == first.version + 2
    assert register_area(guest, abi.REGISTER_VCPU_TIME_MEMORY_AREA, 0, vcpu=2) == 0
    guest.machine.now += 1000
    guest.domain.update_time(2)
    assert abi.VCPU_TIME_INFO.unpack(guest.memory.view(address, 32), 64) == second


def test_a_guest_that_stood_still_is_told_in_its_clock(guest: ScriptedGuest) -> None:
    address = 0x300 * PAGE
    assert register_area(guest, abi.REGISTER_VCPU_TIME_MEMORY_AREA, address, vcpu=1) == 0
    info = guest.domain.vcpus[1].info.view[64 + TIME : 64 + TIME + 32]
    for tell in (guest.domain.stood_still, guest.domain.resume):
        guest.domain.update_time(1)
        assert abi.VCPU_TIME_INFO.unpack(info, 64).flags == abi.PVCLOCK_TSC_STABLE
        tell()
        shown = abi.VCPU_TIME_INFO.unpack(info, 64)
        assert shown.flags == abi.PVCLOCK_TSC_STABLE | abi.PVCLOCK_GUEST_STOPPED
        assert shown.version % 2 == 0
    second = abi.VCPU_TIME_INFO.unpack(guest.memory.view(address, 32), 64)
    assert second.flags == abi.PVCLOCK_TSC_STABLE, "where nobody would clear it"


@pytest.mark.parametrize("cmd", [abi.REGISTER_RUNSTATE_PHYS_AREA, abi.REGISTER_VCPU_TIME_PHYS_AREA])
def test_physical_areas_lie_within_a_page(guest: ScriptedGuest, cmd: int) -> None:
    assert register_area(guest, cmd, 0x300 * PAGE + 4) == -errno.ENXIO
    assert register_area(guest, cmd, 0x301 * PAGE - 8) == -errno.ENXIO
    assert register_area(guest, cmd, SIZE) == -errno.EINVAL
    assert register_area(guest, cmd, 0x300 * PAGE) == 0
    assert register_area(guest, cmd, 2**64 - 1) == 0


# Timers


@pytest.fixture
def timer(guest: ScriptedGuest) -> int:
    """VIRQ_TIMER's port on VCPU 0."""
    result, answer = guest.op(EVENT_CHANNEL_OP, BIND_VIRQ, BIND_VIRQ_ARG, BindVirq(VIRQ_TIMER, 0, 0))
    assert result == 0
    return answer.port


def fired(guest: ScriptedGuest, port: int) -> bool:
    """Whether the timer's event came; takes it."""
    channel = guest.domain.evtchn.get(port)
    assert channel is not None
    pending = guest.domain.evtchn.is_pending(port)
    guest.domain.shared_info.page.test_and_clear(2048, port)
    return pending


def singleshot(guest: ScriptedGuest, deadline: int, flags: int = 0, target: int = 0, vcpu: int = 0) -> int:
    value = abi.SetSingleshotTimer(deadline, flags)
    return guest.vcpu_op(abi.SET_SINGLESHOT_TIMER, target, abi.SET_SINGLESHOT_TIMER_ARG, value, vcpu)


def advance(guest: ScriptedGuest, to: int) -> None:
    """Move time, and do as the machine does when VCPU 0's deadline has passed."""
    guest.machine.now = to
    deadline = guest.machine.deadlines[0]
    if deadline is not None and deadline <= to:
        guest.machine.deadlines[0] = None
        guest.domain.timer_expired(0)


def test_a_singleshot_timer_fires_once(guest: ScriptedGuest, timer: int) -> None:
    assert singleshot(guest, 2_000_000) == 0
    assert guest.machine.deadlines == [2_000_000, None, None]
    advance(guest, 1_999_999)
    assert not fired(guest, timer)
    advance(guest, 2_000_000)
    assert fired(guest, timer)
    assert guest.machine.deadlines[0] is None
    advance(guest, 9_000_000)
    assert not fired(guest, timer)


def test_a_deadline_in_the_past_fires_soon(guest: ScriptedGuest, timer: int) -> None:
    assert singleshot(guest, 0) == 0
    advance(guest, guest.machine.now)
    assert fired(guest, timer)
    assert singleshot(guest, 5, abi.SINGLESHOT_FUTURE) == -errno.ETIME
    assert guest.machine.deadlines[0] is None


def test_a_singleshot_timer_belongs_to_its_vcpu(guest: ScriptedGuest) -> None:
    assert singleshot(guest, 2_000_000, target=1) == -errno.EINVAL
    assert guest.call(VCPU_OP, abi.STOP_SINGLESHOT_TIMER, 1, 0) == -errno.EINVAL
    assert singleshot(guest, 2_000_000, target=1, vcpu=1) == 0
    assert guest.machine.deadlines == [None, 2_000_000, None]
    assert guest.call(VCPU_OP, abi.STOP_SINGLESHOT_TIMER, 1, 0, vcpu=1) == 0
    assert guest.machine.deadlines == [None, None, None]


def test_the_old_timer_call_is_the_same_timer(guest: ScriptedGuest, timer: int) -> None:
    deadline = 0x1_0000_0005
    registers = (deadline,) if guest.bits == 64 else (5, 1)
    assert guest.call(SET_TIMER_OP, *registers) == 0
    assert guest.machine.deadlines[0] == deadline
    assert guest.call(SET_TIMER_OP, 0, 0) == 0
    assert guest.machine.deadlines[0] is None


def test_a_periodic_timer_keeps_its_pace(guest: ScriptedGuest, timer: int) -> None:
    start = guest.machine.now
    value = abi.SetPeriodicTimer(1_000_000)
    assert guest.vcpu_op(abi.SET_PERIODIC_TIMER, 0, abi.SET_PERIODIC_TIMER_ARG, value) == 0
    advance(guest, start + 1_000_100)
    assert fired(guest, timer)
    assert guest.machine.deadlines[0] == start + 2_000_000
    advance(guest, start + 5_500_000)
    assert fired(guest, timer)
    assert guest.machine.deadlines[0] == start + 6_000_000, "missed ticks are not made up for"
    assert guest.call(VCPU_OP, abi.STOP_PERIODIC_TIMER, 0, 0) == 0
    assert guest.machine.deadlines[0] is None


@pytest.mark.parametrize("period", [0, 999_999, 2**63])
def test_a_period_that_is_too_short_or_too_long_is_refused(guest: ScriptedGuest, period: int) -> None:
    value = abi.SetPeriodicTimer(period)
    assert guest.vcpu_op(abi.SET_PERIODIC_TIMER, 0, abi.SET_PERIODIC_TIMER_ARG, value) == -errno.EINVAL


def test_the_earlier_of_two_timers_is_next(guest: ScriptedGuest, timer: int) -> None:
    start = guest.machine.now
    guest.vcpu_op(abi.SET_PERIODIC_TIMER, 0, abi.SET_PERIODIC_TIMER_ARG, abi.SetPeriodicTimer(2_000_000))
    assert singleshot(guest, start + 1_000_000) == 0
    assert guest.machine.deadlines[0] == start + 1_000_000
    advance(guest, start + 1_000_000)
    assert fired(guest, timer)
    assert guest.machine.deadlines[0] == start + 2_000_000


@pytest.mark.parametrize(
    ("cmd", "kind", "expected"), [(0, 4, errno.EINVAL), (0, 64, errno.EINVAL), (2, 5, errno.ENOSYS)]
)
def test_assists_that_are_not_there_are_refused(guest: ScriptedGuest, cmd: int, kind: int, expected: int) -> None:
    assert guest.call(VM_ASSIST, cmd, kind) == -expected

"""MEMORY_OP by a scripted guest."""

from __future__ import annotations

import pytest

from pyxen.abi import errno
from pyxen.abi import memory as abi
from pyxen.abi.hypercall import MEMORY_OP
from pyxen.abi.shared_info import DOMID_SELF, LAYOUTS
from pyxen.hypervisor.hypercalls.memory_op import MAX_BATCH, MAX_PAGES
from tests.unit.hypervisor.hypercalls.scripted import DOMID, NOWHERE, OUTSIDE, PAGE, SIZE, ScriptedGuest

RAM_PAGES = 0xA0 + SIZE // PAGE - 0x100


@pytest.fixture(params=[64, 32])
def guest(request: pytest.FixtureRequest) -> ScriptedGuest:
    return ScriptedGuest(bits=request.param)


def extents(
    guest: ScriptedGuest, cmd: int, gfns: list[int], order: int = 0, domid: int = DOMID_SELF, count: int | None = None
) -> int:
    width = guest.bits // 8
    address = guest.store(b"".join(gfn.to_bytes(width, "little") for gfn in gfns))
    value = abi.Reservation(address, len(gfns) if count is None else count, order, 0, domid)
    return guest.op(MEMORY_OP, cmd, abi.RESERVATION_ARG, value)[0]


def place(guest: ScriptedGuest, space: int, idx: int, gfn: int, domid: int = DOMID_SELF) -> int:
    value = abi.AddToPhysmap(domid, 0, space, idx, gfn)
    return guest.op(MEMORY_OP, abi.ADD_TO_PHYSMAP, abi.ADD_TO_PHYSMAP_ARG, value)[0]


def remove(guest: ScriptedGuest, gfn: int) -> int:
    value = abi.RemoveFromPhysmap(DOMID_SELF, gfn)
    return guest.op(MEMORY_OP, abi.REMOVE_FROM_PHYSMAP, abi.REMOVE_FROM_PHYSMAP_ARG, value)[0]


def current(guest: ScriptedGuest) -> int:
    return guest.op(MEMORY_OP, abi.CURRENT_RESERVATION, abi.DOMAIN_ID_ARG, abi.DomainId(DOMID_SELF))[0]


def test_ballooning_gives_pages_back_and_takes_them_again(guest: ScriptedGuest) -> None:
    assert current(guest) == RAM_PAGES
    assert extents(guest, abi.DECREASE_RESERVATION, [0x300, 0x301, 0x302]) == 3
    assert guest.machine.released == [0x300, 0x301, 0x302]
    assert current(guest) == RAM_PAGES - 3
    assert extents(guest, abi.POPULATE_PHYSMAP, [0x301, 0x300]) == 2
    assert current(guest) == RAM_PAGES - 1
    maximum = guest.op(MEMORY_OP, abi.MAXIMUM_RESERVATION, abi.DOMAIN_ID_ARG, abi.DomainId(DOMID))[0]
    assert maximum == RAM_PAGES


def test_a_lowered_maximum_keeps_pages_away_and_changes_are_told(guest: ScriptedGuest) -> None:
    calls: list[int] = []
    guest.domain.reservation.changed = lambda: calls.append(1)
    assert extents(guest, abi.DECREASE_RESERVATION, [0x300, 0x301, 0x302]) == 3
    guest.domain.reservation.maximum = RAM_PAGES - 2
    assert extents(guest, abi.POPULATE_PHYSMAP, [0x300, 0x301]) == 1
    assert current(guest) == RAM_PAGES - 2
    assert guest.op(MEMORY_OP, abi.MAXIMUM_RESERVATION, abi.DOMAIN_ID_ARG, abi.DomainId(DOMID))[0] == RAM_PAGES - 2
    guest.domain.reservation.maximum = RAM_PAGES
    assert extents(guest, abi.POPULATE_PHYSMAP, [0x301, 0x302]) == 2
    assert len(calls) == 3


@pytest.mark.parametrize("gfn", [0xA0, 0xFF, 0x400, 0xFFFFFFFF])
def test_what_is_not_ram_ends_the_count(guest: ScriptedGuest, gfn: int) -> None:
    assert extents(guest, abi.DECREASE_RESERVATION, [0x300, gfn, 0x301]) == 1
    assert extents(guest, abi.POPULATE_PHYSMAP, [0x300, gfn, 0x301]) == 1
    assert guest.machine.released == [0x300]


def test_a_page_is_given_back_once(guest: ScriptedGuest) -> None:
    assert extents(guest, abi.DECREASE_RESERVATION, [0x300, 0x300]) == 1
    assert current(guest) == RAM_PAGES - 1


def test_extents_of_many_pages_are_aligned(guest: ScriptedGuest) -> None:
    assert extents(guest, abi.DECREASE_RESERVATION, [0x304, 0x306], order=1) == 2
    assert guest.machine.released == [0x304, 0x305, 0x306, 0x307]
    assert extents(guest, abi.DECREASE_RESERVATION, [0x309], order=1) == 0
    assert extents(guest, abi.DECREASE_RESERVATION, [0x200], order=10) == 0
    assert extents(guest, abi.POPULATE_PHYSMAP, [0x304], order=0xFFFFFFFF) == 0


def test_a_list_that_is_not_mapped_is_a_fault(guest: ScriptedGuest) -> None:
    value = abi.Reservation(NOWHERE & (1 << guest.bits) - 1, 1, 0, 0, DOMID_SELF)
    for cmd in (abi.DECREASE_RESERVATION, abi.POPULATE_PHYSMAP):
        assert guest.op(MEMORY_OP, cmd, abi.RESERVATION_ARG, value)[0] == -errno.EFAULT


def test_a_list_that_ends_in_nothing_is_done_as_far_as_it_goes(guest: ScriptedGuest) -> None:
    guest.memory.write(SIZE - 2 * guest.bits // 8, 0x300.to_bytes(guest.bits // 8, "little") * 2)
    value = abi.Reservation(SIZE - 2 * guest.bits // 8, 1000, 0, 0, DOMID_SELF)
    assert guest.op(MEMORY_OP, abi.POPULATE_PHYSMAP, abi.RESERVATION_ARG, value)[0] == 2


def test_one_call_does_so_much_and_the_next_goes_on(guest: ScriptedGuest) -> None:
    width = guest.bits // 8
    address = 0x200000
    guest.memory.write(address, 0x300.to_bytes(width, "little") * (MAX_PAGES + 2))
    value = abi.Reservation(address, MAX_PAGES + 2, 0, 0, DOMID_SELF)
    assert guest.op(MEMORY_OP, abi.POPULATE_PHYSMAP, abi.RESERVATION_ARG, value)[0] == MAX_PAGES
    cmd = abi.POPULATE_PHYSMAP | MAX_PAGES << abi.START_EXTENT_SHIFT
    assert guest.op(MEMORY_OP, cmd, abi.RESERVATION_ARG, value)[0] == MAX_PAGES + 2
    late = abi.POPULATE_PHYSMAP | (MAX_PAGES + 9) << abi.START_EXTENT_SHIFT
    assert guest.op(MEMORY_OP, late, abi.RESERVATION_ARG, value)[0] == MAX_PAGES + 9


@pytest.mark.parametrize(("domid", "expected"), [(0, errno.EPERM), (9, errno.ESRCH)])
def test_other_domains_memory_is_not_the_guests(guest: ScriptedGuest, domid: int, expected: int) -> None:
    for cmd in (abi.DECREASE_RESERVATION, abi.POPULATE_PHYSMAP, abi.INCREASE_RESERVATION):
        assert extents(guest, cmd, [0x300], domid=domid) == -expected
    assert place(guest, abi.SPACE_SHARED_INFO, 0, 0x300, domid) == -expected
    answer = guest.op(MEMORY_OP, abi.CURRENT_RESERVATION, abi.DOMAIN_ID_ARG, abi.DomainId(domid))[0]
    assert answer == -expected
    removal = abi.RemoveFromPhysmap(domid, 0x300)
    assert guest.op(MEMORY_OP, abi.REMOVE_FROM_PHYSMAP, abi.REMOVE_FROM_PHYSMAP_ARG, removal)[0] == -expected


def test_an_increase_gives_nothing(guest: ScriptedGuest) -> None:
    assert extents(guest, abi.INCREASE_RESERVATION, [0x300]) == 0


def test_the_last_frame_of_ram(guest: ScriptedGuest) -> None:
    assert guest.call(MEMORY_OP, abi.MAXIMUM_RAM_PAGE, 0) == SIZE // PAGE - 1
    answer = guest.op(MEMORY_OP, abi.MAXIMUM_GPFN, abi.DOMAIN_ID_ARG, abi.DomainId(DOMID_SELF))[0]
    assert answer == SIZE // PAGE - 1


def test_the_memory_map_is_told(guest: ScriptedGuest) -> None:
    buffer = guest.store(b"\xff" * 100)
    value = abi.MemoryMap(4, buffer)
    result, answer = guest.op(MEMORY_OP, abi.MEMORY_MAP, abi.MEMORY_MAP_ARG, value)
    assert (result, answer.nr_entries) == (0, 3)
    entries = [guest.memory.read(buffer + at, 20) for at in (0, 20, 40)]
    assert [
        tuple(int.from_bytes(entry[a:b], "little") for a, b in ((0, 8), (8, 16), (16, 20))) for entry in entries
    ] == [(0, 0xA0000, 1), (0xA0000, 0x60000, 2), (0x100000, SIZE - 0x100000, 1)]
    assert guest.memory.read(buffer + 60, 40) == b"\xff" * 40


def test_a_memory_map_that_does_not_fit(guest: ScriptedGuest) -> None:
    for value, expected in (
        (abi.MemoryMap(2, guest.store(bytes(60))), errno.ENOBUFS),
        (abi.MemoryMap(3, NOWHERE & (1 << guest.bits) - 1), errno.EFAULT),
    ):
        assert guest.op(MEMORY_OP, abi.MEMORY_MAP, abi.MEMORY_MAP_ARG, value)[0] == -expected


def test_shared_info_appears_where_the_guest_wants_it(guest: ScriptedGuest) -> None:
    layout = LAYOUTS[guest.bits]
    guest.memory.write(0x300 * PAGE, b"\xff" * PAGE)
    assert place(guest, abi.SPACE_SHARED_INFO, 0, 0x300) == 0
    at = 0x300 * PAGE
    assert guest.memory.u32(at + layout.wc_sec) == 1_700_000_000
    assert guest.memory.u32(at + layout.wc_nsec) == 123_456_789
    assert guest.memory.u32(at + layout.wc_version) % 2 == 0
    clock = at + 64 + 32
    assert guest.memory.u32(clock) % 2 == 0
    assert guest.memory.u64(clock + 8) == 1001
    assert guest.memory.u64(clock + 16) == guest.machine.now
    assert guest.memory.u32(clock + 24) == 0x80000000
    assert (guest.memory.u8(clock + 28), guest.memory.u8(clock + 29)) == (0xFF, 1)
    assert current(guest) == RAM_PAGES - 1, "the page that was there is gone"


def test_shared_info_moves_with_its_contents(guest: ScriptedGuest) -> None:
    assert place(guest, abi.SPACE_SHARED_INFO, 0, 0x300) == 0
    guest.memory.put_u8(0x300 * PAGE + 2048, 0xA5)
    assert place(guest, abi.SPACE_SHARED_INFO, 0, 0x300) == 0
    assert place(guest, abi.SPACE_SHARED_INFO, 0, OUTSIDE) == 0
    assert guest.memory.u8(OUTSIDE * PAGE + 2048) == 0xA5
    assert guest.domain.vcpus[0].info.address == guest.domain.shared_info.page.address
    assert remove(guest, OUTSIDE) == 0
    assert guest.domain.shared_info.gfn is None
    assert guest.domain.shared_info.page.view[2048] == 0xA5
    assert remove(guest, OUTSIDE) == -errno.EINVAL


def test_grant_frames_appear_where_the_guest_wants_them(guest: ScriptedGuest) -> None:
    guest.domain.grants.grant(1, 0x55)
    assert place(guest, abi.SPACE_GRANT_TABLE, 1, OUTSIDE + 1) == 0
    assert place(guest, abi.SPACE_GRANT_TABLE, 0, OUTSIDE) == 0
    assert guest.memory.u32(OUTSIDE * PAGE + 8) == 1
    assert guest.memory.u32(OUTSIDE * PAGE + 12) == 0x55
    assert [frame.gfn for frame in guest.domain.grants.frames] == [OUTSIDE, OUTSIDE + 1]
    assert remove(guest, OUTSIDE) == 0
    assert guest.domain.grants.frames[0].gfn is None


def test_one_of_xens_pages_takes_the_place_of_another(guest: ScriptedGuest) -> None:
    assert place(guest, abi.SPACE_SHARED_INFO, 0, OUTSIDE) == 0
    guest.memory.put_u8(OUTSIDE * PAGE + 2048, 0xA5)
    assert place(guest, abi.SPACE_GRANT_TABLE, 0, OUTSIDE) == 0
    assert guest.domain.shared_info.gfn is None
    assert guest.domain.shared_info.page.view[2048] == 0xA5
    assert guest.memory.u8(OUTSIDE * PAGE + 2048) == 0


@pytest.mark.parametrize(
    ("space", "idx", "gfn", "expected"),
    [
        (abi.SPACE_SHARED_INFO, 1, 0x300, errno.EINVAL),
        (abi.SPACE_SHARED_INFO, 0, 0xFFFFFFFF, errno.EINVAL),
        (abi.SPACE_GRANT_TABLE, 64, 0x300, errno.EINVAL),
        (abi.SPACE_GRANT_TABLE, abi.GRANT_STATUS_FRAME, 0x300, errno.EINVAL),
        (abi.SPACE_GRANT_TABLE, 0, 0xFFFFFFFF, errno.EINVAL),
        (abi.SPACE_GMFN, 0x301, 0x300, errno.EOPNOTSUPP),
        (abi.SPACE_GMFN_RANGE, 0x301, 0x300, errno.EOPNOTSUPP),
        (99, 0, 0x300, errno.ENOSYS),
    ],
)
def test_what_cannot_be_placed_is_refused(guest: ScriptedGuest, space: int, idx: int, gfn: int, expected: int) -> None:
    assert place(guest, space, idx, gfn) == -expected
    assert current(guest) == RAM_PAGES
    assert guest.domain.shared_info.gfn is None


def test_a_batch_has_an_answer_for_each(guest: ScriptedGuest) -> None:
    width = guest.bits // 8
    idxs = guest.store(b"".join(idx.to_bytes(width, "little") for idx in (0, 64, 1)))
    gfns = guest.store(b"".join(gfn.to_bytes(width, "little") for gfn in (OUTSIDE, OUTSIDE + 1, OUTSIDE + 2)))
    errs = guest.store(b"\xee" * 16)
    value = abi.AddToPhysmapBatch(DOMID_SELF, abi.SPACE_GRANT_TABLE, 3, 0, idxs, gfns, errs)
    assert guest.op(MEMORY_OP, abi.ADD_TO_PHYSMAP_BATCH, abi.ADD_TO_PHYSMAP_BATCH_ARG, value)[0] == 0
    answers = [int.from_bytes(guest.memory.read(errs + at, 4), "little", signed=True) for at in (0, 4, 8)]
    assert answers == [0, -errno.EINVAL, 0]
    assert guest.memory.read(errs + 12, 4) == b"\xee" * 4
    foreign = value._replace(space=abi.SPACE_GMFN_FOREIGN)
    result = guest.op(MEMORY_OP, abi.ADD_TO_PHYSMAP_BATCH, abi.ADD_TO_PHYSMAP_BATCH_ARG, foreign)[0]
    assert result == -errno.EPERM
    long = value._replace(size=MAX_BATCH + 1)
    result = guest.op(MEMORY_OP, abi.ADD_TO_PHYSMAP_BATCH, abi.ADD_TO_PHYSMAP_BATCH_ARG, long)[0]
    assert result == -errno.E2BIG
    fault = value._replace(errs=NOWHERE & (1 << guest.bits) - 1)
    result = guest.op(MEMORY_OP, abi.ADD_TO_PHYSMAP_BATCH, abi.ADD_TO_PHYSMAP_BATCH_ARG, fault)[0]
    assert result == -errno.EFAULT


def test_a_page_of_ram_can_be_removed(guest: ScriptedGuest) -> None:
    assert remove(guest, 0x310) == 0
    assert remove(guest, 0x310) == -errno.EINVAL
    assert guest.machine.released == [0x310]


@pytest.mark.parametrize(
    ("cmd", "expected"),
    [
        (abi.EXCHANGE, errno.ENOSYS),
        (abi.MACHPHYS_MFN_LIST, errno.ENOSYS),
        (abi.MACHPHYS_MAPPING, errno.ENOSYS),
        (abi.GET_VNUMAINFO, errno.EOPNOTSUPP),
        (abi.SET_MEMORY_MAP, errno.EPERM),
        (abi.ACQUIRE_RESOURCE, errno.EPERM),
        (63, errno.ENOSYS),
    ],
)
def test_what_a_pvh_guest_has_no_use_for_is_refused(guest: ScriptedGuest, cmd: int, expected: int) -> None:
    assert guest.call(MEMORY_OP, cmd, guest.store(bytes(64))) == -expected


@pytest.mark.parametrize("cmd", [0, 1, 3, 4, 6, 7, 9, 14, 15, 23])
def test_structures_that_are_not_mapped_are_faults(guest: ScriptedGuest, cmd: int) -> None:
    assert guest.call(MEMORY_OP, cmd, NOWHERE) == -errno.EFAULT

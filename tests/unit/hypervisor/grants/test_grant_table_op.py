"""GRANT_TABLE_OP by a scripted guest."""

from __future__ import annotations

from typing import Any

import pytest

from pyxen.abi import errno
from pyxen.abi import grant_table as abi
from pyxen.abi.hypercall import GRANT_TABLE_OP
from pyxen.abi.layout import Layout
from pyxen.abi.shared_info import DOMID_SELF
from pyxen.hypervisor.hypercalls.grant_table_op import MAX_COUNT
from tests.unit.hypervisor.hypercalls.scripted import DOMID, NOWHERE, PAGE, ScriptedGuest


@pytest.fixture(params=[64, 32])
def guest(request: pytest.FixtureRequest) -> ScriptedGuest:
    return ScriptedGuest(bits=request.param)


def one(guest: ScriptedGuest, cmd: int, layout: Layout[Any], value: Any) -> tuple[int, Any]:
    return guest.op(GRANT_TABLE_OP, cmd, layout, value, 1)


def set_version(guest: ScriptedGuest, version: int) -> tuple[int, int]:
    result, answer = one(guest, abi.SET_VERSION, abi.SET_VERSION_ARG, abi.SetVersion(version))
    return result, answer.version


def place(guest: ScriptedGuest, index: int) -> int:
    """Have a frame of the table in the guest's memory; its gfn."""
    gfn = guest.page()
    guest.domain.grants.frame(index).place(guest.domain.page(gfn), gfn)
    return gfn


def test_the_size_of_the_table(guest: ScriptedGuest) -> None:
    value = abi.QuerySize(DOMID_SELF, 9, 9, 9)
    assert one(guest, abi.QUERY_SIZE, abi.QUERY_SIZE_ARG, value) == (0, (DOMID_SELF, 1, 64, abi.OKAY))
    value = abi.QuerySize(9, 5, 5, 9)
    assert one(guest, abi.QUERY_SIZE, abi.QUERY_SIZE_ARG, value) == (0, (9, 5, 5, abi.BAD_DOMAIN))
    value = abi.QuerySize(0, 5, 5, 9)
    assert one(guest, abi.QUERY_SIZE, abi.QUERY_SIZE_ARG, value)[1].status == abi.PERMISSION_DENIED


def test_the_version_is_told_and_changed(guest: ScriptedGuest) -> None:
    def version() -> int:
        result, answer = one(guest, abi.GET_VERSION, abi.GET_VERSION_ARG, abi.GetVersion(DOMID_SELF, 0, 9))
        assert result == 0
        return int(answer.version)

    assert version() == 1
    assert set_version(guest, 2) == (0, 2)
    assert version() == 2
    assert set_version(guest, 2) == (0, 2)
    assert set_version(guest, 1) == (0, 1)
    assert set_version(guest, 3) == (-errno.EINVAL, 1)
    assert one(guest, abi.GET_VERSION, abi.GET_VERSION_ARG, abi.GetVersion(9, 0, 0))[0] == -errno.ESRCH


def test_the_version_stays_while_a_grant_is_in_use(guest: ScriptedGuest) -> None:
    guest.domain.grants.grant(8, 0x300)
    guest.domain.grants.map(8, write=False)
    assert set_version(guest, 2) == (-errno.EBUSY, 1)
    guest.domain.grants.unmap(8)
    assert set_version(guest, 2) == (0, 2)


def test_reserved_entries_survive_a_change_of_version(guest: ScriptedGuest) -> None:
    guest.domain.grants.grant(0, 0x310)
    guest.domain.grants.grant(1, 0x311)
    guest.domain.grants.grant(9, 0x312)
    ring = guest.domain.grants.map(1, write=True)
    for version in (2, 1):
        assert set_version(guest, version) == (0, version)
        ring[:3] = b"abc"
        assert guest.memory.read(0x311 * PAGE, 3) == b"abc"
        guest.domain.grants.map(0, write=True)[:1] = b"c"
        guest.domain.grants.unmap(0)
        with pytest.raises(Exception, match="not granted"):
            guest.domain.grants.map(9, write=False)
    guest.domain.grants.unmap(1)


def test_a_frame_that_version_1_cannot_name_keeps_version_2(guest: ScriptedGuest) -> None:
    assert set_version(guest, 2) == (0, 2)
    guest.domain.grants.grant(0, 1 << 33)
    assert set_version(guest, 1) == (-errno.ERANGE, 2)


def test_setup_tells_where_the_frames_are(guest: ScriptedGuest) -> None:
    width = guest.bits // 8
    gfn = place(guest, 1)
    frames = guest.store(b"\xee" * 24)
    value = abi.SetupTable(DOMID_SELF, 2, 9, frames)
    result, answer = one(guest, abi.SETUP_TABLE, abi.SETUP_TABLE_ARG, value)
    assert (result, answer.status) == (0, abi.OKAY)
    told = guest.memory.read(frames, 24)
    assert told[:width] == b"\xff" * width, "not placed yet"
    assert int.from_bytes(told[width : 2 * width], "little") == gfn
    assert told[2 * width :] == b"\xee" * (24 - 2 * width)


@pytest.mark.parametrize(
    ("domid", "frames", "address", "expected"),
    [
        (9, 1, 0x1000, abi.BAD_DOMAIN),
        (0, 1, 0x1000, abi.PERMISSION_DENIED),
        (DOMID_SELF, 65, 0x1000, abi.GENERAL_ERROR),
        (DOMID_SELF, 0xFFFFFFFF, 0x1000, abi.GENERAL_ERROR),
        (DOMID_SELF, 1, 0x7FFFF000, abi.BAD_VIRT_ADDR),
    ],
)
def test_setup_refuses(guest: ScriptedGuest, domid: int, frames: int, address: int, expected: int) -> None:
    value = abi.SetupTable(domid, frames, 9, address)
    result, answer = one(guest, abi.SETUP_TABLE, abi.SETUP_TABLE_ARG, value)
    assert (result, answer.status) == (0, expected)
    assert len(guest.domain.grants.frames) == 1


def test_status_frames_are_told_of_in_version_2(guest: ScriptedGuest) -> None:
    frames = guest.store(b"\xee" * 16)
    value = abi.GetStatusFrames(1, DOMID_SELF, 9, frames)
    assert one(guest, abi.GET_STATUS_FRAMES, abi.GET_STATUS_FRAMES_ARG, value)[1].status == abi.GENERAL_ERROR
    assert set_version(guest, 2) == (0, 2)
    gfn = guest.page()
    guest.domain.grants.frame(0, status=True).place(guest.domain.page(gfn), gfn)
    assert one(guest, abi.GET_STATUS_FRAMES, abi.GET_STATUS_FRAMES_ARG, value)[1].status == abi.OKAY
    assert guest.memory.u64(frames) == gfn
    foreign = value._replace(dom=9)
    assert one(guest, abi.GET_STATUS_FRAMES, abi.GET_STATUS_FRAMES_ARG, foreign)[1].status == abi.BAD_DOMAIN


@pytest.mark.parametrize(("domid", "expected"), [(9, -2), (0, -3), (DOMID_SELF, -1)])
def test_there_is_nothing_to_map(guest: ScriptedGuest, domid: int, expected: int) -> None:
    value = abi.MapGrantRef(0x300000, 2, 8, domid, 9, 0, 0)
    result, answer = one(guest, abi.MAP_GRANT_REF, abi.MAP_GRANT_REF_ARG, value)
    assert (result, answer.status) == (0, expected)


@pytest.mark.parametrize("cmd", [abi.UNMAP_GRANT_REF, abi.UNMAP_AND_REPLACE])
def test_there_is_nothing_to_unmap(guest: ScriptedGuest, cmd: int) -> None:
    result, answer = one(guest, cmd, abi.UNMAP_GRANT_REF_ARG, abi.UnmapGrantRef(0x300000, 0, 3, 9))
    assert (result, answer.status) == (0, abi.BAD_HANDLE)


def copy(guest: ScriptedGuest, **fields: int) -> int:
    value = abi.CopyOp(0x300, DOMID_SELF, 4, 0x301, DOMID_SELF, 8, 16, 0, 9)._replace(**fields)
    result, answer = one(guest, abi.COPY, abi.COPY_ARG, value)
    assert result == 0
    return int(answer.status)


def grant_to_itself(guest: ScriptedGuest, ref: int, gfn: int, *, read_only: bool = False) -> None:
    guest.domain.grants.grant(ref, gfn, DOMID)
    if read_only:
        page = guest.domain.grants.frames[0].page
        page.or16(ref * 8, abi.GTF_READONLY)


def test_a_guest_copies_in_its_own_memory(guest: ScriptedGuest) -> None:
    guest.memory.write(0x300004, b"0123456789abcdef")
    assert copy(guest) == abi.OKAY
    assert guest.memory.read(0x301008, 17) == b"0123456789abcdef\0"
    grant_to_itself(guest, 8, 0x300)
    grant_to_itself(guest, 9, 0x302)
    flags = abi.COPY_SOURCE_GREF | abi.COPY_DEST_GREF
    assert copy(guest, source=8, dest=9, flags=flags) == abi.OKAY
    assert guest.memory.read(0x302008, 16) == b"0123456789abcdef"
    assert guest.domain.grants.active == {}


def test_copies_are_refused(guest: ScriptedGuest) -> None:
    grant_to_itself(guest, 8, 0x300, read_only=True)
    guest.domain.grants.grant(9, 0x300)
    assert copy(guest, source_domid=9) == abi.BAD_DOMAIN
    assert copy(guest, dest_domid=0) == abi.PERMISSION_DENIED
    assert copy(guest, source_offset=4081) == abi.BAD_COPY_ARG
    assert copy(guest, dest_offset=0xFFFF) == abi.BAD_COPY_ARG
    assert copy(guest, source=0x99999) == abi.BAD_PAGE
    assert copy(guest, dest=0xFFFFFFFF) == abi.BAD_PAGE
    assert copy(guest, dest=8, flags=abi.COPY_DEST_GREF) == abi.PERMISSION_DENIED
    assert copy(guest, source=9, flags=abi.COPY_SOURCE_GREF) == abi.BAD_GNTREF
    assert copy(guest, source=0xFFFFFFFF, flags=abi.COPY_SOURCE_GREF) == abi.BAD_GNTREF
    assert guest.domain.grants.active == {}
    assert guest.memory.read(0x301000, PAGE) == bytes(PAGE)


def swap(guest: ScriptedGuest, a: int, b: int) -> int:
    result, answer = one(guest, abi.SWAP_GRANT_REF, abi.SWAP_GRANT_REF_ARG, abi.SwapGrantRef(a, b, 9))
    assert result == 0
    return int(answer.status)


@pytest.mark.parametrize("version", [1, 2])
def test_entries_are_swapped(guest: ScriptedGuest, version: int) -> None:
    assert set_version(guest, version)[0] == 0
    guest.domain.grants.grant(8, 0x300)
    guest.memory.write(0x300000, b"x")
    assert swap(guest, 8, 12) == abi.OKAY
    assert bytes(guest.domain.grants.map(12, write=False)[:1]) == b"x"
    assert swap(guest, 8, 12) == abi.EAGAIN
    assert swap(guest, 8, 100000) == abi.BAD_GNTREF


def test_an_array_of_operations(guest: ScriptedGuest) -> None:
    layout = abi.SWAP_GRANT_REF_ARG
    packed = [layout.pack(abi.SwapGrantRef(a, b, 9), guest.bits) for a, b in ((8, 9), (8, 99999), (10, 11))]
    address = guest.store(b"".join(packed))
    assert guest.call(GRANT_TABLE_OP, abi.SWAP_GRANT_REF, address, 3) == 0
    size = layout.size(guest.bits)
    data = guest.memory.view(address, 3 * size)
    assert [layout.unpack(data, guest.bits, index * size).status for index in range(3)] == [0, abi.BAD_GNTREF, 0]


@pytest.mark.parametrize(
    ("cmd", "count", "expected"),
    [
        (abi.QUERY_SIZE, 0, errno.EINVAL),
        (abi.SETUP_TABLE, 2, errno.EINVAL),
        (abi.COPY, 1 << 31, errno.EINVAL),
        (abi.COPY, MAX_COUNT + 1, errno.E2BIG),
        (abi.COPY | 0x1000, 1, errno.EINVAL),
        (abi.TRANSFER, 1, errno.EOPNOTSUPP),
        (abi.DUMP_TABLE, 1, errno.EOPNOTSUPP),
        (abi.CACHE_FLUSH | 0x1000, 1, errno.EOPNOTSUPP),
        (13, 1, errno.ENOSYS),
    ],
)
def test_wrong_calls(guest: ScriptedGuest, cmd: int, count: int, expected: int) -> None:
    assert guest.call(GRANT_TABLE_OP, cmd, guest.store(bytes(64)), count) == -expected


@pytest.mark.parametrize("cmd", [0, 1, 2, 5, 6, 7, 8, 9, 10, 11])
def test_structures_that_are_not_mapped_are_faults(guest: ScriptedGuest, cmd: int) -> None:
    assert guest.call(GRANT_TABLE_OP, cmd, NOWHERE, 1) == -errno.EFAULT
    assert guest.call(GRANT_TABLE_OP, abi.COPY, NOWHERE, 0) == 0

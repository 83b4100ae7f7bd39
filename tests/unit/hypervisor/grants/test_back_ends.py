"""What back ends may do with what a guest grants, in both versions of the table."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pyxen.abi import grant_table as abi
from pyxen.abi.grant_table import GrantError
from pyxen.hypervisor.atomic import SharedPage
from pyxen.hypervisor.grants import GrantTable
from tests.unit.hypervisor.hypercalls.scripted import PAGE, ScriptedGuest

IN_USE = abi.GTF_READING | abi.GTF_WRITING


class Table:
    """The guest's side of its table: two frames of it, written as Linux does."""

    def __init__(self, version: int) -> None:
        self.guest = ScriptedGuest()
        self.grants: GrantTable = self.guest.domain.grants
        self.grants.grow(2)
        self.grants.set_version(version)
        self.version = version
        self.entry = 8 if version == 1 else 16
        self.places = [self.guest.page() * PAGE for _ in range(2)]
        for frame, place in zip(self.grants.frames, self.places, strict=True):
            frame.place(self.guest.domain.page(place // PAGE), place // PAGE)

    def at(self, ref: int) -> int:
        per_frame = PAGE // self.entry
        return self.places[ref // per_frame] + ref % per_frame * self.entry

    def fill(self, ref: int, gfn: int, flags: int = abi.GTF_PERMIT_ACCESS, domid: int = 0) -> None:
        memory, at = self.guest.memory, self.at(ref)
        memory.put_u16(at + 2, domid)
        if self.version == 1:
            memory.put_u32(at + 4, gfn)
        else:
            memory.put_u64(at + 8, gfn)
        memory.put_u16(at, flags)

    def in_use(self, ref: int) -> int:
        """The reading and writing bits as the guest finds them."""
        if self.version == 1:
            return self.guest.memory.u16(self.at(ref)) & IN_USE
        return self.grants.status_frames[0].page.u16[ref]

    def end(self, ref: int) -> bool:
        """End a grant as Linux does; False while it is in use."""
        flags = self.guest.memory.u16(self.at(ref))
        if self.version == 1:
            if flags & IN_USE:
                return False
            self.guest.memory.put_u16(self.at(ref), 0)
            return True
        self.guest.memory.put_u16(self.at(ref), 0)
        return not self.in_use(ref)


@pytest.fixture(params=[1, 2])
def table(request: pytest.FixtureRequest) -> Table:
    return Table(request.param)


def test_a_granted_page_is_seen_and_written(table: Table) -> None:
    ref = 300
    table.fill(ref, 0x300)
    table.guest.memory.write(0x300000, b"from the guest")
    view = table.grants.map(ref, write=True)
    assert len(view) == PAGE
    assert bytes(view[:14]) == b"from the guest"
    view[:2] = b"to"
    assert table.guest.memory.read(0x300000, 4) == b"toom"
    assert table.in_use(ref) == IN_USE
    table.grants.unmap(ref)
    assert table.in_use(ref) == 0
    assert table.end(ref)


def test_a_page_is_in_use_until_the_last_unmap(table: Table) -> None:
    table.fill(9, 0x300)
    table.grants.map(9, write=False)
    assert table.in_use(9) == abi.GTF_READING
    table.grants.map(9, write=True)
    table.grants.unmap(9)
    assert not table.end(9)
    table.grants.unmap(9)
    assert table.end(9)
    with pytest.raises(GrantError, match="not in use"):
        table.grants.unmap(9)


@pytest.mark.parametrize(
    ("flags", "domid", "status"),
    [
        (abi.GTF_INVALID, 0, abi.BAD_GNTREF),
        (abi.GTF_ACCEPT_TRANSFER, 0, abi.BAD_GNTREF),
        (abi.GTF_TRANSITIVE, 0, abi.BAD_GNTREF),
        (abi.GTF_PERMIT_ACCESS, 3, abi.BAD_GNTREF),
        (abi.GTF_PERMIT_ACCESS | abi.GTF_READONLY, 0, abi.PERMISSION_DENIED),
    ],
)
def test_what_is_not_granted_for_writing_is_refused(table: Table, flags: int, domid: int, status: int) -> None:
    table.fill(9, 0x300, flags, domid)
    with pytest.raises(GrantError) as error:
        table.grants.map(9, write=True)
    assert error.value.status == status
    assert table.in_use(9) == 0


def test_what_is_granted_for_reading_can_be_read(table: Table) -> None:
    table.fill(9, 0x300, abi.GTF_PERMIT_ACCESS | abi.GTF_READONLY)
    table.guest.memory.write(0x300010, b"abc")
    assert table.grants.copy_in(9, 0x10, 3) == b"abc"
    with pytest.raises(GrantError):
        table.grants.copy_out(9, 0, b"x")


@pytest.mark.parametrize("ref", [-1, 1024, 2**32 - 1])
def test_references_beyond_the_table_are_refused(table: Table, ref: int) -> None:
    with pytest.raises(GrantError, match="entries") as error:
        table.grants.map(ref, write=False)
    assert error.value.status == abi.BAD_GNTREF


@pytest.mark.parametrize("gfn", [0x400, 0xFFFFFFFF])
def test_frames_that_are_not_there_are_refused_and_not_in_use(table: Table, gfn: int) -> None:
    table.fill(9, gfn)
    with pytest.raises(GrantError) as error:
        table.grants.map(9, write=True)
    assert error.value.status == abi.BAD_PAGE
    assert table.in_use(9) == 0
    assert table.grants.active == {}


@pytest.mark.parametrize(("offset", "length"), [(-1, 4), (4093, 4), (0, 4097), (4096, 1), (0, -1)])
def test_copies_stay_in_the_page(table: Table, offset: int, length: int) -> None:
    table.fill(9, 0x300)
    with pytest.raises(GrantError) as error:
        table.grants.copy_in(9, offset, length)
    assert error.value.status == abi.BAD_COPY_ARG
    assert table.in_use(9) == 0


def test_copies_reach_the_end_of_the_page(table: Table) -> None:
    table.fill(9, 0x300)
    table.grants.copy_out(9, 4090, b"abcdef")
    assert table.guest.memory.read(0x300FFA, 7) == b"abcdef\0"
    assert table.grants.copy_in(9, 4096, 0) == b""


def test_the_frame_of_a_page_in_use_does_not_change(table: Table) -> None:
    table.fill(9, 0x300)
    first = table.grants.map(9, write=True)
    table.fill(9, 0x301)
    second = table.grants.map(9, write=True)
    second[:1] = b"x"
    assert bytes(first[:1]) == b"x"
    assert table.guest.memory.u8(0x301000) == 0


def test_a_part_of_a_page_is_copied_but_not_mapped() -> None:
    table = Table(2)
    table.fill(9, 0x300, abi.GTF_PERMIT_ACCESS | abi.GTF_SUB_PAGE)
    table.guest.memory.put_u16(table.at(9) + 4, 16)
    table.guest.memory.put_u16(table.at(9) + 6, 8)
    table.guest.memory.write(0x300010, b"12345678")
    assert table.grants.copy_in(9, 16, 8) == b"12345678"
    for offset, length in ((15, 2), (23, 2), (0, 1)):
        with pytest.raises(GrantError):
            table.grants.copy_in(9, offset, length)
    with pytest.raises(GrantError, match="part of the page"):
        table.grants.map(9, write=False)
    assert table.in_use(9) == 0


def test_the_part_of_a_page_ends_with_the_page() -> None:
    table = Table(2)
    table.fill(9, 0x300, abi.GTF_PERMIT_ACCESS | abi.GTF_SUB_PAGE)
    table.guest.memory.put_u16(table.at(9) + 4, 4095)
    table.guest.memory.put_u16(table.at(9) + 6, 0xFFFF)
    assert table.grants.copy_in(9, 4095, 1) == b"\0"
    with pytest.raises(GrantError):
        table.grants.copy_in(9, 4095, 2)


def test_a_guest_that_changes_its_entry_meanwhile_is_refused(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    table.fill(9, 0x300)
    changing = _changing(table)
    monkeypatch.setattr(SharedPage, "compare_exchange32", changing(SharedPage.compare_exchange32))
    monkeypatch.setattr(SharedPage, "or16", changing(SharedPage.or16))
    with pytest.raises(GrantError):
        table.grants.map(9, write=True)
    assert table.in_use(9) == 0
    assert table.grants.active == {}


def _changing(table: Table) -> Callable[[Callable[..., object]], Callable[..., object]]:
    """A guest that turns a spare bit of its entry over just before each locked operation on it."""

    def wrap(original: Callable[..., object]) -> Callable[..., object]:
        def operation(*args: object) -> object:
            memory, at = table.guest.memory, table.at(9)
            memory.put_u16(at, memory.u16(at) ^ 0x40)
            return original(*args)

        return operation

    return wrap


def test_the_table_grows_to_its_limit_and_no_further(table: Table) -> None:
    grants = table.grants
    assert grants.frame(63) is grants.frames[63]
    with pytest.raises(Exception, match="22"):
        grants.frame(64)
    assert grants.entries == 64 * PAGE // table.entry
    if table.version == 2:
        assert len(grants.status_frames) == grants.max_status_frames == 8
        with pytest.raises(Exception, match="22"):
            grants.frame(8, status=True)

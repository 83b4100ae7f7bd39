"""Guest memory: every access is checked."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyxen.hypervisor.memory import BadAddress, GuestMemory

_LOW, _HIGH = 0x1000, 0x100000000


def two_regions() -> GuestMemory:
    return GuestMemory([(0, bytearray(_LOW)), (_HIGH, bytearray(0x2000))])


def test_integers_are_little_endian_and_cut_to_their_size() -> None:
    memory = GuestMemory.anonymous(4096)
    memory.put_u64(1, 0x1_1122334455667788)
    assert memory.read(1, 8) == bytes.fromhex("8877665544332211")
    assert (memory.u8(1), memory.u16(1), memory.u32(1), memory.u64(1)) == (
        0x88,
        0x7788,
        0x55667788,
        0x1122334455667788,
    )
    memory.put_u32(1, 0xF_00000001)
    memory.put_u16(5, 0xF_0002)
    memory.put_u8(7, 0xF03)
    assert memory.read(1, 8) == bytes.fromhex("0100000002000311")


def test_a_view_is_the_memory_itself() -> None:
    memory = two_regions()
    memory.view(_HIGH + 4, 4)[:] = b"Xen!"
    assert memory.read(_HIGH, 9) == b"\x00\x00\x00\x00Xen!\x00"


@given(st.integers(-(1 << 65), 1 << 65), st.integers(-16, 1 << 65))
def test_only_what_is_wholly_inside_one_region_is_reached(gpa: int, length: int) -> None:
    memory = two_regions()
    inside = any(start <= gpa and gpa + length <= end for start, end in ((0, _LOW), (_HIGH, _HIGH + 0x2000)))
    if inside and length >= 0:
        assert len(memory.view(gpa, length)) == length
    else:
        with pytest.raises(BadAddress):
            memory.view(gpa, length)


@pytest.mark.parametrize("gpa", [-1, _LOW - 1, _HIGH - 1, _HIGH + 0x1FFF, 1 << 64])
def test_integers_across_an_edge_are_refused(gpa: int) -> None:
    memory = two_regions()
    for access in (memory.u16, memory.u32, memory.u64):
        with pytest.raises(BadAddress):
            access(gpa)
    for store in (memory.put_u16, memory.put_u32, memory.put_u64):
        with pytest.raises(BadAddress):
            store(gpa, 0)


def test_a_write_that_does_not_fit_stores_nothing() -> None:
    memory = two_regions()
    with pytest.raises(BadAddress):
        memory.write(_LOW - 2, b"abc")
    assert memory.read(_LOW - 2, 2) == b"\x00\x00"


def test_regions_come_and_go_but_never_overlap() -> None:
    memory = two_regions()
    page = memory.add(0x8000, bytearray(4096))
    memory.put_u8(0x8FFF, 7)
    assert page.data[0xFFF] == 7
    with pytest.raises(ValueError, match="0x8800"):
        memory.add(0x8800, bytearray(4096))
    memory.remove(page)
    with pytest.raises(BadAddress):
        memory.u8(0x8000)

"""Page walks in each of the modes a guest may be in."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyxen.hypervisor.kvm.uapi import SREGS_CR0, SREGS_SIZE
from pyxen.hypervisor.memory import BadAddress, GuestMemory
from pyxen.hypervisor.paging import walk

_PG, _PSE, _PAE, _LA57, _LMA = 1 << 31, 1 << 4, 1 << 5, 1 << 12, 1 << 10
_P, _W, _PS = 1, 2, 1 << 7


def sregs(*, cr0: int = _PG, cr3: int = 0x1000, cr4: int = 0, efer: int = 0) -> bytes:
    data = bytearray(SREGS_SIZE)
    struct.pack_into("<6Q", data, SREGS_CR0, cr0, 0, cr3, cr4, 0, efer)
    return bytes(data)


_LONG = sregs(cr4=_PAE, efer=_LMA)


def long_mode() -> GuestMemory:
    """Virtual 0: a page at 0x7000; 2 MiB: a large page at 0x200000; 1 GiB: a huge one at 0; 4 KiB: read-only."""
    memory = GuestMemory.anonymous(0x10000)
    for table, index, entry in (
        (0x1000, 0, 0x2000 | _P | _W),
        (0x1000, 511, 0x2000 | _P | _W | 1 << 63),
        (0x2000, 0, 0x3000 | _P | _W),
        (0x2000, 1, _P | _W | _PS),
        (0x3000, 0, 0x4000 | _P | _W),
        (0x3000, 1, 0x200000 | _P | _W | _PS),
        (0x4000, 0, 0x7000 | _P | _W | 1 << 63),
        (0x4000, 1, 0x8000 | _P),
    ):
        memory.put_u64(table + index * 8, entry)
    return memory


@pytest.mark.parametrize(
    ("address", "physical"),
    [
        (0x123, 0x7123),
        (0x1456, 0x8456),
        (0x2ABCDE, 0x2ABCDE),
        (0x40000000 + 0x12345678, 0x12345678),
        (0xFFFFFF8000000123, 0x7123),
    ],
)
def test_long_mode(address: int, physical: int) -> None:
    assert walk(long_mode(), _LONG, address, write=False) == physical


@pytest.mark.parametrize("address", [0x2000, 0x80000000, 0x8000000000, 0x0000800000000000, 0xFFFF7FFFFFFFFFFF, 1 << 63])
def test_what_is_not_mapped_or_not_canonical_is_refused(address: int) -> None:
    with pytest.raises(BadAddress):
        walk(long_mode(), _LONG, address, write=False)


def test_a_read_only_page_is_not_for_writing() -> None:
    memory = long_mode()
    assert walk(memory, _LONG, 0x1456, write=False) == 0x8456
    with pytest.raises(BadAddress):
        walk(memory, _LONG, 0x1456, write=True)


def test_five_levels() -> None:
    memory = long_mode()
    memory.put_u64(0x5000, 0x1000 | _P | _W)
    assert walk(memory, sregs(cr3=0x5000, cr4=_PAE | _LA57, efer=_LMA), 0x123, write=True) == 0x7123


def test_pae() -> None:
    memory = long_mode()
    memory.put_u64(0x6020 + 3 * 8, 0x3000 | _P)
    pae = sregs(cr3=0x6020, cr4=_PAE)
    assert walk(memory, pae, 0xC0000123, write=True) == 0x7123
    assert walk(memory, pae, 0xC02ABCDE, write=True) == 0x2ABCDE
    with pytest.raises(BadAddress):
        walk(memory, pae, 0x123, write=False)


def test_32_bits() -> None:
    memory = GuestMemory.anonymous(0x10000)
    memory.put_u32(0x1000 + 4, 0x2000 | _P | _W)
    memory.put_u32(0x2000 + 5 * 4, 0x9000 | _P)
    memory.put_u32(0x1000 + 8, 0x400000 | _P | _W | _PS)
    paged = sregs(cr4=_PSE)
    assert walk(memory, paged, 0x405678, write=False) == 0x9678
    with pytest.raises(BadAddress):
        walk(memory, paged, 0x405678, write=True)
    assert walk(memory, paged, 0x812345, write=True) == 0x412345
    with pytest.raises(BadAddress):
        walk(memory, sregs(), 0x812345, write=True)  # without PSE that's a table, which is empty there


def test_without_paging_addresses_are_physical() -> None:
    assert walk(GuestMemory.anonymous(4096), sregs(cr0=1), 0x1_2345_6789, write=True) == 0x23456789


@given(
    st.integers(0, (1 << 64) - 1),
    st.binary(min_size=32, max_size=64).map(lambda data: (data * 512)[:0x4000]),
    st.sampled_from([0, _PAE, _PSE]),
)
def test_tables_of_garbage_end_in_an_address_or_a_refusal(address: int, tables: bytes, cr4: int) -> None:
    memory = GuestMemory([(0x1000, bytearray(tables))])
    for efer in (0, _LMA):
        try:
            assert walk(memory, sregs(cr4=cr4, efer=efer), address, write=False) >= 0
        except BadAddress:
            continue

"""Locked operations: the right bits, and none lost between two that change the same word at the same time."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyxen.hypervisor.atomic import SharedPage


def page() -> SharedPage:
    return SharedPage(memoryview(bytearray(4096)))


@given(offset=st.integers(0, 255).map(lambda n: n * 8), bit=st.integers(0, 4095))
def test_a_bit_of_a_string(offset: int, bit: int) -> None:
    shared = page()
    assert shared.test_and_set(offset, bit) == 0
    assert shared.test_and_set(offset, bit) == 1
    assert int.from_bytes(shared.view, "little") == 1 << (offset * 8 + bit)
    assert shared.test_and_clear(offset, bit) == 1
    assert shared.test_and_clear(offset, bit) == 0
    assert not any(shared.view)


@given(offset=st.integers(0, 1000).map(lambda n: n * 4), bit=st.integers(0, 31))
def test_a_bit_of_a_word(offset: int, bit: int) -> None:
    shared = page()
    assert shared.test_and_set32(offset, bit) == 0
    assert shared.test_and_set32(offset, bit) == 1
    assert shared.u32[offset // 4] == 1 << bit
    assert shared.test_and_clear32(offset, bit) == 1
    assert shared.test_and_clear32(offset, bit) == 0
    assert not any(shared.view)


@given(offset=st.integers(0, 1023).map(lambda n: n * 4), old=st.integers(0, 2**32 - 1), new=st.integers(0, 2**32 - 1))
def test_compare_and_exchange(offset: int, old: int, new: int) -> None:
    shared = page()
    shared.u32[offset // 4] = old
    assert shared.compare_exchange32(offset, old ^ 1, new) == old
    assert shared.u32[offset // 4] == old
    assert shared.compare_exchange32(offset, old, new) == old
    assert shared.u32[offset // 4] == new


def test_bytes_and_halves_leave_their_neighbours_alone() -> None:
    shared = page()
    shared.view[:] = b"\xa5" * 4096
    assert shared.exchange8(5, 1) == 0xA5
    assert shared.exchange8(5, 0xFF) == 1
    shared.or16(8, 0x0018)
    assert shared.u16[4] == 0xA5BD
    shared.and16(8, 0xFFE7)
    assert shared.u16[4] == 0xA5A5
    assert bytes(shared.view[:10]) == b"\xa5" * 5 + b"\xff" + b"\xa5" * 4


@pytest.fixture
def common() -> Iterator[mmap.mmap]:
    """Memory that a child process shares."""
    with mmap.mmap(-1, 4096) as memory:
        yield memory


def test_no_bit_is_lost_between_processes(common: mmap.mmap) -> None:
    shared = SharedPage(memoryview(common))
    child = os.fork()
    rounds = 20_000
    # Each flips bits of its own half of one word: an operation that isn't locked would now and then undo the other's.
    base = 0 if child else 32
    wrong = 0
    for turn in range(rounds):
        bit = base + turn % 32
        wrong += shared.test_and_set(0, bit) != 0
        wrong += shared.test_and_clear(0, bit) != 1
    if not child:
        os._exit(min(wrong, 1))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert wrong == 0
    del shared

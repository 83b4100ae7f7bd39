"""The two instructions of a kernel, told from all else that looks like them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyxen.hypervisor.builder.hypercall_sites import PORT, find, hypercall_page, trap
from tests.unit.hypervisor.builder.elves import VMCALL, VMMCALL, jumping_pair

_AT = 0x1000


def test_a_pair_that_jumps_to_one_place_is_found() -> None:
    assert find([(_AT, b"\x90" * 64 + jumping_pair(64))]) == [_AT + 64, _AT + 80]


def test_a_pair_that_returns_is_found_in_either_order_and_behind_endbr() -> None:
    endbr = b"\xf3\x0f\x1e\xfa"
    one, other = (endbr + each + b"\xc3" for each in (VMCALL, VMMCALL))
    code = one.ljust(32, b"\xcc") + other.ljust(32, b"\xcc")
    assert find([(_AT, code)]) == [_AT + 4, _AT + 36]


@pytest.mark.parametrize(
    "code",
    [
        b"",
        jumping_pair()[:16],  # one of the two
        b"\x90" + jumping_pair(1),  # not at a function's place
        jumping_pair()[:16] + jumping_pair()[16:20] + b"\x00\x01\x00\x00" + bytes(8),  # another target
        jumping_pair()[:16] + (VMCALL + b"\xc3").ljust(16, b"\xcc"),  # another way to return
        VMMCALL + b"\x90" * 13 + VMCALL + b"\x90" * 13,  # in the middle of something
        jumping_pair()[:16] + bytes(512) + jumping_pair(528)[16:],  # far apart
    ],
)
def test_other_shapes_are_not(code: bytes) -> None:
    assert find([(_AT, code)]) == []


def test_functions_of_a_32_bit_kernel_lie_closer_together() -> None:
    code = b"\x90" * 4 + VMMCALL + b"\xc3" + VMCALL + b"\xc3"
    assert find([(_AT, code)], 32) == [_AT + 4, _AT + 8]
    assert find([(_AT, code)], 64) == []
    assert find([(_AT, code[1:])], 32) == []


def test_two_pairs_are_too_many() -> None:
    with pytest.raises(ValueError, match="2 places"):
        find([(_AT, jumping_pair() + bytes(256) + jumping_pair(288))])


@given(st.binary(max_size=300))
def test_random_code_is_survived(code: bytes) -> None:
    find([(_AT, code)])


def test_the_trap_is_as_long_as_what_it_replaces() -> None:
    assert len(trap()) == len(VMCALL)
    assert trap()[:2] == bytes([0xE7, PORT])


def test_the_hypercall_page_has_an_entry_for_each_number() -> None:
    page = hypercall_page()
    assert len(page) == 4096
    entry = page[29 * 32 : 30 * 32]
    assert entry[:8] == b"\xb8\x1d\x00\x00\x00" + bytes([0xE7, PORT, 0xC3])
    assert page[23 * 32 : 23 * 32 + 2] == b"\x0f\x0b"  # no iret

"""Shared rings: order, wrapping, notifications, and front ends that lie."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyxen.abi import io_ring
from pyxen.backend.ring import BackRing, RingError
from tests.unit.backend.guest import FrontRing


def pair(pages: int, entry: int) -> tuple[FrontRing, BackRing]:
    shared = [memoryview(bytearray(4096)) for _ in range(pages)]
    back = BackRing(shared, entry)
    return FrontRing(shared, entry, entry, back.size), back


@pytest.mark.parametrize(
    ("pages", "entry", "size"), [(1, 112, 32), (1, 108, 32), (1, 12, 256), (1, 8, 256), (2, 112, 64), (16, 112, 512)]
)
def test_the_number_of_slots_is_that_of_xen(pages: int, entry: int, size: int) -> None:
    assert io_ring.slots(pages, entry) == size


@pytest.mark.parametrize("pages", [1, 2])
def test_requests_and_responses_keep_their_order_across_pages_and_wraps(pages: int) -> None:
    front, back = pair(pages, 112)
    number = 0
    for batch in (5, front.size, 1, 7, front.size, front.size // 2):
        sent = [bytes([(number + index) % 251]) * 112 for index in range(batch)]
        number += batch
        for data in sent:
            front.put(data)
        front.push()
        taken = list(back.take_all())
        assert taken == sent
        for data in taken:
            back.respond(data[::-1])
        assert front.waiting() == 0
        back.publish()
        assert [front.fetch() for _ in range(front.waiting())] == sent


def test_the_guest_is_notified_when_it_asked_for_it() -> None:
    front, back = pair(1, 8)
    for _ in range(4):
        front.put(b"x")
    front.push()
    front.words[3] = 3
    notified = []
    for data in back.take_all():
        back.respond(data)
        notified.append(back.publish())
    assert notified == [False, False, True, False]
    assert not back.publish()


def test_asking_for_an_event_sees_what_came_before() -> None:
    front, back = pair(1, 8)
    assert not back.ask_for_event()
    assert front.words[1] == 1
    front.put(b"x")
    front.push()
    assert back.ask_for_event()
    assert not back.ask_for_event(2)
    assert front.words[1] == 2


@given(prod=st.integers(0, 2**32 - 1), taken=st.integers(0, 32))
def test_more_requests_than_slots_are_an_error(prod: int, taken: int) -> None:
    front, back = pair(1, 112)
    front.words[0] = taken
    assert len(list(back.take_all())) == taken
    front.words[0] = prod
    if (prod - taken) & 0xFFFFFFFF <= 32 - taken:
        assert back.waiting() == (prod - taken) & 0xFFFFFFFF
    else:
        with pytest.raises(RingError):
            back.waiting()

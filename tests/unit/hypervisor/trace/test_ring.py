"""The ring of records: order, loss, several writers and readers."""

from __future__ import annotations

import threading

import pytest

from pyxen.hypervisor.trace.ring import Reader, Record, Ring


def take(reader: Reader) -> list[Record]:
    found = []
    while (record := reader.next()) is not None:
        found.append(record)
    return found


def test_a_reader_sees_what_comes_after_it_in_order() -> None:
    ring = Ring(8)
    ring.put((1,))
    reader = ring.reader()
    assert take(reader) == []
    for number in (2, 3):
        ring.put((number,))
    assert take(reader) == [(2,), (3,)]
    assert take(reader) == []
    assert reader.take_lost() == 0


def test_who_is_slow_loses_the_oldest_and_knows_how_many() -> None:
    ring = Ring(8)
    reader = ring.reader()
    for number in range(100):
        ring.put((number,))
    assert take(reader) == [(number,) for number in range(92, 100)]
    assert reader.take_lost() == 92
    assert reader.take_lost() == 0


def test_readers_do_not_disturb_each_other() -> None:
    ring = Ring(8)
    first = ring.reader()
    ring.put((1,))
    second = ring.reader()
    ring.put((2,))
    assert take(second) == [(2,)]
    assert take(first) == [(1,), (2,)]


def test_a_slot_that_is_being_filled_is_waited_for() -> None:
    ring = Ring(8)
    reader = ring.reader()
    number = ring._next()  # a writer that was interrupted between its two steps
    ring.put((2,))
    assert take(reader) == []
    ring._slots[number & 7] = number, (1,)
    assert take(reader) == [(1,), (2,)]


def test_writers_in_many_threads_lose_nothing_among_themselves() -> None:
    ring = Ring(1 << 15)
    reader = ring.reader()

    def write(who: int) -> None:
        for number in range(5000):
            ring.put((who, number))

    threads = [threading.Thread(target=write, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = take(reader)
    for who in range(4):
        assert [number for writer, number in found if writer == who] == list(range(5000))
    assert reader.take_lost() == 0


def test_its_size_is_a_power_of_two() -> None:
    with pytest.raises(ValueError, match="100"):
        Ring(100)

"""The main loop: other threads, descriptors, timers."""

from __future__ import annotations

import os
import selectors
import threading
from collections.abc import Iterator

import pytest

from pyxen.hypervisor.clock import GuestClock, host_tsc
from pyxen.hypervisor.loop import Loop, Timer

_MS = 1_000_000


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


def test_other_threads_have_things_done_in_the_loops_thread(loop: Loop) -> None:
    seen: list[tuple[str, int]] = []

    def other() -> None:
        loop.call_soon(lambda: seen.append(("first", threading.get_ident())))
        loop.call_soon(lambda: seen.append(("second", threading.get_ident())))
        loop.call_soon(loop.stop)

    thread = threading.Thread(target=other)
    thread.start()
    loop.run()
    thread.join()
    assert seen == [("first", threading.get_ident()), ("second", threading.get_ident())]


def test_what_calls_itself_again_does_not_keep_descriptors_from_their_turn(loop: Loop) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"x")

    def again() -> None:
        loop.call_soon(again)

    loop.call_soon(again)
    loop.selector.register(reader, selectors.EVENT_READ, lambda mask: loop.stop())
    loop.run()
    os.close(reader)
    os.close(writer)


def test_hooks_run_after_each_round(loop: Loop) -> None:
    rounds: list[int] = []
    loop.after_each_round(lambda: rounds.append(len(rounds)))
    loop.call_soon(lambda: loop.call_soon(loop.stop))
    loop.run()
    assert len(rounds) >= 2


def test_a_timer_fires_once_after_its_delay(loop: Loop) -> None:
    fired: list[str] = []
    timer = Timer(loop, lambda: fired.append("timer"))
    last = Timer(loop, loop.stop)
    timer.arm(1)
    last.arm(20 * _MS)
    loop.run()
    assert fired == ["timer"]
    timer.close()
    last.close()


def test_a_timer_that_is_disarmed_or_armed_anew_does_not_fire_for_the_old_time(loop: Loop) -> None:
    fired: list[str] = []
    first = Timer(loop, lambda: fired.append("disarmed"))
    second = Timer(loop, lambda: fired.append("far off"))
    end = Timer(loop, loop.stop)
    first.arm(1)
    first.disarm()
    second.arm(1)
    second.arm(3600 * 1000 * _MS)
    end.arm(-5)  # has passed: soon
    loop.run()
    assert fired == []
    for timer in (first, second, end):
        timer.close()


def test_what_is_asked_for_again_and_again_waits_once(loop: Loop) -> None:
    """A guest's events come faster than they are dealt with, and must not pile up."""
    runs: list[int] = []

    def serve() -> None:
        runs.append(len(loop._queue))
        if len(runs) < 3:
            ask()
        else:
            loop.stop()

    ask = loop.coalesced(serve)
    for _ in range(1000):
        ask()
    loop.run()
    assert runs == [0, 0, 0]


def test_the_clock_runs_as_the_guest_computes_it() -> None:
    clock = GuestClock(2_000_000, [1 << 63, 1 << 63])
    numbers = clock.pvclock(1)
    assert numbers == clock.pvclock(0)

    def guest_ns() -> int:
        ticks = (host_tsc() + (1 << 63) - numbers.tsc_timestamp) % (1 << 64)
        ticks = ticks << numbers.shift if numbers.shift >= 0 else ticks >> -numbers.shift
        return numbers.system_time + (ticks * numbers.mul >> 32)

    before = clock.now_ns()
    seen = guest_ns()
    assert before <= seen <= clock.now_ns()


def test_clocks_of_different_vcpus_are_not_called_stable() -> None:
    clock = GuestClock(2_000_000, [5, 6])
    assert clock.pvclock(0).flags == 0
    assert clock.pvclock(1).tsc_timestamp - clock.pvclock(0).tsc_timestamp == 1

"""What a domain's process notices of its guest, and tells."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyxen.engine.events import EventLog
from pyxen.hypervisor.changes import Changes
from pyxen.hypervisor.departures import Departures
from pyxen.hypervisor.events import Events
from pyxen.hypervisor.loop import Loop


@pytest.fixture
def loop() -> Iterator[Loop]:
    """A loop that runs in a thread."""
    loop = Loop()
    thread = threading.Thread(target=loop.run)
    thread.start()
    yield loop
    loop.stop()
    thread.join()
    loop.close()


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_many_small_changes_are_told_as_one(loop: Loop, tmp_path: Path) -> None:
    online, pages = {0}, [256 * 100]
    events = Events(tmp_path / "events")
    changes = Changes(loop, events, online=lambda: frozenset(online), pages=lambda: pages[0])
    log = EventLog(tmp_path / "events")
    changes.vcpus()
    changes.memory()
    until(lambda: log.read().online == frozenset({0}) and log.read().memory_bytes == 100 << 20)
    for step in range(1000):
        pages[0] = 256 * 100 - step
        changes.memory()
    online.add(1)
    changes.vcpus()
    until(lambda: log.read().online == frozenset({0, 1}) and log.read().memory_bytes == (256 * 100 - 999) * 4096)
    told = (tmp_path / "events").read_bytes()
    changes.vcpus()
    changes.memory()
    done = threading.Event()
    loop.call_soon(done.set)
    assert done.wait(20)
    assert told.count(b"BALLOON_CHANGE") < 10
    changes.close()
    events.close()
    log.close()


def test_a_vcpu_is_looked_at_until_it_is_down(loop: Loop) -> None:
    looks: list[int] = []

    def still_up(vcpu: int) -> bool:
        looks.append(vcpu)
        return looks.count(vcpu) < 3

    departures = Departures(loop, still_up)
    departures.expect(1)
    departures.expect(2)
    until(lambda: looks.count(1) == looks.count(2) == 3)
    time.sleep(0.02)
    assert len(looks) == 6
    departures.close()


def test_a_vcpu_that_stays_is_not_looked_at_for_ever(loop: Loop) -> None:
    looks: list[int] = []

    def still_up(vcpu: int) -> bool:
        looks.append(vcpu)
        return True

    departures = Departures(loop, still_up)
    departures.expect(1)
    until(lambda: len(looks) == 10)
    time.sleep(0.1)
    assert len(looks) == 10
    departures.close()

"""The ring of events and its readers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise

import pytest

from pyxen.api import Event
from pyxen.xend.events import LOST, Events

pytestmark = pytest.mark.anyio


async def take(stream: AsyncIterator[Event], count: int) -> list[Event]:
    return [await anext(stream) for _ in range(count)]


async def test_sequences_rise_from_the_first() -> None:
    events = Events(first=41)
    assert events.last == 40
    made = [events.publish("domain-started", domid=number, name="web", mode="fast") for number in range(3)]
    assert [each.sequence for each in made] == [41, 42, 43]
    assert events.last == 43
    assert made[0].data == {"mode": "fast"}


async def test_a_subscriber_counts_from_its_subscription() -> None:
    events = Events()
    events.publish("before")
    stream = events.subscribe()
    events.publish("between")
    assert (await anext(stream)).kind == "between"
    waiting = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    assert not waiting.done()
    events.publish("live")
    assert (await waiting).kind == "live"


async def test_what_is_kept_is_replayed() -> None:
    events = Events()
    for number in range(5):
        events.publish(f"kind-{number}")
    assert [each.sequence for each in await take(events.subscribe(after=2), 3)] == [3, 4, 5]


async def test_a_reader_that_was_overtaken_is_told_and_goes_on() -> None:
    events = Events(limit=3)
    stream = events.subscribe()
    for number in range(10):
        events.publish(f"kind-{number}")
    got = await take(stream, 4)
    assert [(each.kind, each.sequence) for each in got] == [
        (LOST, 7),
        ("kind-7", 8),
        ("kind-8", 9),
        ("kind-9", 10),
    ]


async def test_a_number_from_the_future_means_lost_events() -> None:
    events = Events()
    events.publish("one")
    stream = events.subscribe(after=5000)
    lost = await anext(stream)
    assert (lost.kind, lost.sequence) == (LOST, 1)
    events.publish("two")
    assert (await anext(stream)).kind == "two"


async def test_all_readers_get_all_events_whatever_their_speed() -> None:
    events = Events(limit=1000)

    async def read(pause_every: int) -> list[int]:
        got = []
        async for event in events.subscribe(after=0):
            got.append(event.sequence)
            if len(got) % pause_every == 0:
                await asyncio.sleep(0)
        return got

    readers = [asyncio.create_task(read(pace)) for pace in (1, 7, 500)]
    for number in range(500):
        events.publish("tick")
        if number % 3 == 0:
            await asyncio.sleep(0)
    events.close()
    for got in await asyncio.gather(*readers):
        assert got == list(range(1, 501))
        assert all(later - earlier == 1 for earlier, later in pairwise(got))


async def test_closing_ends_a_reader_that_waits() -> None:
    events = Events()
    waiting = asyncio.ensure_future(anext(events.subscribe(), None))
    await asyncio.sleep(0)
    events.close()
    assert await waiting is None


async def test_a_callback_that_fails_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    events = Events()
    seen: list[str] = []

    def fail(event: Event) -> None:
        raise ZeroDivisionError(event.kind)

    events.on(fail)
    off = events.on(lambda event: seen.append(event.kind))
    events.publish("one")
    off()
    off()
    events.publish("two")
    assert seen == ["one"]
    assert "a listener failed on one" in caplog.text

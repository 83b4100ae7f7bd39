"""What a device may do in a second."""

from __future__ import annotations

import threading
import time

from pyxen.backend.limit import Limit


def seconds(limit: Limit, requests: int, size: int) -> float:
    began = time.monotonic()
    for _ in range(requests):
        limit.take(size)
    return time.monotonic() - began


def test_no_limit_is_no_wait_whatever_the_size() -> None:
    limit = Limit(None, None)
    limit.take(1 << 60)
    limit.take(1 << 60)


def test_bytes_and_requests_are_held_to_their_rates() -> None:
    assert seconds(Limit(1 << 20, None), 6, 1 << 16) >= 0.18  # what is saved up, an overdraft, and four that wait
    assert seconds(Limit(None, 100), 30, 1 << 30) >= 0.17
    assert seconds(Limit(1 << 30, 100), 30, 1) >= 0.17


def waiting(limit: Limit) -> threading.Thread:
    """A request that would wait for an hour."""
    limit.take(3600)
    limit.take(3600 + (1 << 16))
    thread = threading.Thread(target=limit.take, args=(1,), daemon=True)
    thread.start()
    thread.join(0.05)
    assert thread.is_alive()
    return thread


def test_a_new_rate_holds_for_those_that_wait() -> None:
    limit = Limit(1, None)
    thread = waiting(limit)
    limit.set(None, None)
    thread.join(10)
    assert not thread.is_alive()


def test_a_device_that_closes_waits_for_nothing() -> None:
    limit = Limit(1, None)
    thread = waiting(limit)
    limit.cancel(True)
    thread.join(10)
    assert not thread.is_alive()
    limit.take(1 << 40)
    limit.cancel(False)
    limit.set(1, None)  # what was overdrawn is forgotten with the old rate
    waiting(limit)

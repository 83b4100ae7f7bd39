"""Rates: how much a device may do in a second."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Credit:
    """A rate in units (bytes, requests) a second, of which a tenth of a second, or ``least``, may be saved up."""

    def __init__(self, rate: int | None, least: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._least = least
        self._clock = clock
        self._at = clock()
        self.set(rate)

    def set(self, rate: int | None) -> None:
        """Another rate from now on; None: none."""
        self._rate = rate
        self._most = max(rate / 10, self._least) if rate else 0.0
        self._left = self._most

    def delay(self) -> float:
        """Seconds until the next thing may be done; 0: now."""
        rate = self._rate
        if not rate:
            return 0.0
        now = self._clock()
        self._left = min(self._most, self._left + (now - self._at) * rate)
        self._at = now
        # Less than one is not worth a wait: rounding would leave one for ever.
        return -self._left / rate if self._left <= -1 else 0.0

    def spend(self, count: int) -> None:
        """What is done may overdraw the account; the next thing then waits."""
        if self._rate:
            self._left -= count


class Limit:
    """What one disk's queues may do together: bytes and requests a second. For any thread."""

    def __init__(self, rate: int | None, iops: int | None) -> None:
        self._changed = threading.Condition()
        self._bytes = Credit(rate, 1 << 16)
        self._requests = Credit(iops, 1)
        self._any = bool(rate or iops)
        self._open = False

    def set(self, rate: int | None, iops: int | None) -> None:
        """Other rates from now on, for requests that wait too; None: none."""
        with self._changed:
            self._bytes.set(rate)
            self._requests.set(iops)
            self._any = bool(rate or iops)
            self._changed.notify_all()

    def cancel(self, on: bool) -> None:
        """Whether requests go through at once, because the device is to be closed."""
        with self._changed:
            self._open = on
            self._changed.notify_all()

    def take(self, count: int) -> None:
        """Wait until a request for so many bytes may be carried out."""
        if not self._any:
            return
        with self._changed:
            while not self._open and (delay := max(self._bytes.delay(), self._requests.delay())):
                self._changed.wait(delay)
            self._bytes.spend(count)
            self._requests.spend(1)

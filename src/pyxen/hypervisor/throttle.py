"""VCPUs kept out of guest code for a part of the time, so that a guest writes less memory than can be sent."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Final

from pyxen.hypervisor.processor import Hold, Processor

_PERIOD_S: Final = 0.1


class Throttle:
    """Has a thread of its own while it does something. For one thread at a time."""

    def __init__(self, processors: Sequence[Processor]) -> None:
        self._processors = processors
        self._share = 0.0
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def set(self, share: float) -> None:
        """Keep all VCPUs out for this share of the time, from 0 up to less than 1."""
        self._share = share
        if share and self._thread is None:
            self._over.clear()
            self._thread = threading.Thread(target=self._run, name="throttle", daemon=True)
            self._thread.start()
        elif not share and self._thread is not None:
            self._over.set()
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        over = False
        while not over:
            share = self._share
            for processor in self._processors:
                processor.hold(Hold.THROTTLED)
            over = self._over.wait(_PERIOD_S * share)
            for processor in self._processors:
                processor.release(Hold.THROTTLED)
            over = over or self._over.wait(_PERIOD_S * (1 - share))

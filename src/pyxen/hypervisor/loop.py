"""The main loop of a domain's process: descriptors, timers, and what other threads want done here.

Each key that is registered with ``selector`` has a callable as its ``data``, which is given the mask of events.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import selectors
from collections import deque
from collections.abc import Callable
from typing import Any, Final

_CLOCK_MONOTONIC: Final = 1
_SECOND: Final = 1_000_000_000


class Loop:
    """Runs in one thread; ``call_soon`` and ``stop`` may be called from any."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self._queue: deque[Callable[[], None]] = deque()
        self._wakeup = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._stopped = False
        self._hooks: list[Callable[[], None]] = []
        self.selector.register(self._wakeup, selectors.EVENT_READ, self._woken)

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Run ``callback`` in the loop's thread."""
        self._queue.append(callback)
        os.eventfd_write(self._wakeup, 1)

    def coalesced(self, callback: Callable[[], None]) -> Callable[[], None]:
        """A function that has ``callback`` run soon: once, however often it is called until then. For any thread.

        What a guest can ask for must come this way: its events are made faster than they are dealt with.
        """
        waiting = False

        def run() -> None:
            nonlocal waiting
            waiting = False
            callback()

        def ask() -> None:
            nonlocal waiting
            if not waiting:
                waiting = True
                self.call_soon(run)

        return ask

    def after_each_round(self, hook: Callable[[], None]) -> None:
        """Run ``hook`` each time before the loop waits again."""
        self._hooks.append(hook)

    def stop(self) -> None:
        """Let ``run`` return when this round is over."""
        self._stopped = True
        os.eventfd_write(self._wakeup, 1)

    def run(self) -> None:
        while not self._stopped:
            for hook in self._hooks:
                hook()
            for key, mask in self.selector.select():
                key.data(mask)

    def close(self) -> None:
        self.selector.close()
        os.close(self._wakeup)

    def _woken(self, mask: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wakeup)
        # Not what is added meanwhile: descriptors get their turn too.
        for _ in range(len(self._queue)):
            self._queue.popleft()()


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _TimerSpec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class Timer:
    """One timerfd: ``callback`` runs on the loop once after each ``arm``, unless armed or disarmed again before."""

    # With the GIL held: neither call ever waits, and giving it up costs more.
    _libc: Any = ctypes.PyDLL(None, use_errno=True)

    def __init__(self, loop: Loop, callback: Callable[[], None]) -> None:
        self._fd = self._libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._callback = callback
        self._loop = loop
        self._spec = _TimerSpec()
        self._pointer = ctypes.byref(self._spec)
        loop.selector.register(self._fd, selectors.EVENT_READ, self._expired)

    def arm(self, delay_ns: int) -> None:
        """Run the callback in ``delay_ns`` nanoseconds; soon, if that is not positive. One thread at a time."""
        self._set(max(1, delay_ns))

    def disarm(self) -> None:
        self._set(0)

    def close(self) -> None:
        self._loop.selector.unregister(self._fd)
        os.close(self._fd)

    def _set(self, delay_ns: int) -> None:
        value = self._spec.value
        value.seconds, value.nanoseconds = divmod(min(delay_ns, _SECOND << 32), _SECOND)
        self._libc.timerfd_settime(self._fd, 0, self._pointer, None)

    def _expired(self, mask: int) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:  # armed anew between the event and now
            return
        self._callback()

"""A way to call off what a thread writes, also while whoever should read doesn't."""

from __future__ import annotations

import os
import select

from pyxen.errors import Conflict


class Stop:
    """Made and closed by whoever starts the thread; ``set`` may be called from any."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._set = False

    def set(self) -> None:
        """What is waiting ends with an exception, and so does what waits later."""
        self._set = True
        os.eventfd_write(self._fd, 1)

    def check(self) -> None:
        """Raises Conflict once it is set."""
        if self._set:
            raise Conflict("it was called off")

    def until_writable(self, fd: int) -> None:
        """Wait until ``fd`` takes something. Raises Conflict."""
        waiting = select.poll()
        waiting.register(fd, select.POLLOUT)
        waiting.register(self._fd, select.POLLIN)
        waiting.poll()
        self.check()

    def sleep(self, seconds: float) -> None:
        """Raises Conflict."""
        waiting = select.poll()
        waiting.register(self._fd, select.POLLIN)
        waiting.poll(seconds * 1000)
        self.check()

    def close(self) -> None:
        os.close(self._fd)

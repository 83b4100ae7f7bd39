"""The first console's files: what the guest prints is appended to ``console.log``, ``console.in`` is typed into it."""

from __future__ import annotations

import os
import selectors
import stat
from pathlib import Path
from typing import Final

from pyxen.backend.console import Console
from pyxen.hypervisor.domain import Domain
from pyxen.hypervisor.loop import Loop
from pyxen.hypervisor.memory import PAGE_SHIFT, PAGE_SIZE

_AT_ONCE: Final = 4096


class Log:
    """``console.log``. From any thread; a full disk loses output rather than stopping the guest."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)

    def write(self, data: bytes) -> None:
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError:
            return

    def close(self) -> None:
        os.close(self._fd)


class Terminal:
    """Connects the console's ring to its files. The FIFO is read only as fast as the guest reads."""

    def __init__(self, domain: Domain, port: int, log: Log, fifo: Path, loop: Loop) -> None:
        page = domain.memory.keep(domain.console_gfn << PAGE_SHIFT, PAGE_SIZE)
        self._loop = loop
        self._reading = False
        self._read_on_soon = loop.coalesced(self._read_on)
        self._console = Console(page, log.write, lambda: self._port.notify())
        self._port = domain.evtchn.bind_backend(port, self._event)
        if not fifo.exists() or not stat.S_ISFIFO(fifo.stat().st_mode):
            os.mkfifo(fifo, 0o600)
        # For writing too, so that it never ends.
        self._fd = os.open(fifo, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        self._read_on()

    def close(self) -> None:
        """Take what the guest has printed last; type no more."""
        self._console.on_event()
        self._port.close()
        if self._reading:
            self._loop.selector.unregister(self._fd)
        os.close(self._fd)

    def _event(self) -> None:
        """The guest has printed, in its VCPU's thread: at once, as some guests wait for it."""
        self._console.on_event()
        if not self._reading and not self._console.full:
            self._read_on_soon()

    def _read_on(self) -> None:
        if not self._reading:
            self._reading = True
            self._loop.selector.register(self._fd, selectors.EVENT_READ, self._typed)

    def _typed(self, mask: int) -> None:
        try:
            self._console.type(os.read(self._fd, min(_AT_ONCE, self._console.room)))
        except BlockingIOError:
            return
        if self._console.full:
            self._reading = False
            self._loop.selector.unregister(self._fd)

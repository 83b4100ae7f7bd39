"""``agent.sock``: where xend speaks to the agent in the guest, through a console of its own (backend.channel).

One caller at a time; others wait in the socket. What the guest says while nobody listens is thrown away.

While a guest starts, or goes on elsewhere, its caller greets again and again, each time with much padding before it, in
case an earlier one has stopped in the midst of something. A guest takes that slowly, so until it has read a first
greeting only the last one is kept for it.
"""

from __future__ import annotations

import selectors
import socket
import threading
from typing import Final

from pyxen.abi.agent import MOST_COMMANDS, OUTPUT_WINDOW
from pyxen.backend.console import Console
from pyxen.hypervisor.loop import Loop

DEVID: Final = 1
_AT_ONCE: Final = 65536
_MOST_EARLY: Final = 4096
_MOST_SAID: Final = 2 * MOST_COMMANDS * OUTPUT_WINDOW + _AT_ONCE
"""Bytes of the guest's that wait for the caller: what an agent may send before it is told to go on, and answers."""


class AgentSocket:
    """The channel's end on the host: a ``HostEnd``. For the main loop's thread, unless told otherwise."""

    def __init__(self, fd: int, loop: Loop) -> None:
        """``fd`` is the listening socket's, which now belongs to this object."""
        self._listener = socket.socket(fileno=fd)
        self._listener.setblocking(False)
        self._loop = loop
        self._caller: socket.socket | None = None
        self._console: Console | None = None
        self._lock = threading.Lock()
        self._said = bytearray()
        self._early = b""
        self._greeted = False
        self._mask = 0
        self._go_on_soon = loop.coalesced(self._go_on)
        self._open = True
        self._listen()

    def write(self, data: bytes) -> None:
        """In a VCPU's thread."""
        with self._lock:
            if self._caller is None or len(self._said) > _MOST_SAID:
                return
            self._said += data
        self._go_on_soon()

    def taken(self) -> None:
        """In a VCPU's thread."""
        if self._early or not self._mask & selectors.EVENT_READ:
            self._go_on_soon()

    def ready(self, console: Console | None) -> None:
        self._console = console
        self._greeted = False
        self._pass_on()
        self._go_on()

    def close(self) -> None:
        if not self._open:
            return
        self._open = False
        if self._caller is None:
            self._loop.selector.unregister(self._listener)
        else:
            self._watch(0)
            self._caller.close()
        self._listener.close()

    def _listen(self) -> None:
        self._loop.selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def _accept(self, mask: int) -> None:
        try:
            accepted, _ = self._listener.accept()
        except OSError:  # it has gone again, or we are out of descriptors
            return
        accepted.setblocking(False)
        self._loop.selector.unregister(self._listener)
        with self._lock:
            self._caller = accepted
        self._go_on()

    def _go_on(self) -> None:
        """Give the caller what there is for it, and listen to it as long as the guest takes what it says."""
        if self._caller is None or not self._open:
            return
        self._pass_on()
        with self._lock:
            alive = len(self._said) <= _MOST_SAID and self._give()
            waiting = bool(self._said)
        if not alive:
            self._hang_up()
            return
        full = self._console is not None and self._console.full
        self._watch((0 if full else selectors.EVENT_READ) | (selectors.EVENT_WRITE if waiting else 0))

    def _waits(self) -> bool:
        """The guest has yet to read the first greeting."""
        return self._console is not None and self._greeted and not self._console.heard

    def _pass_on(self) -> None:
        """Give the guest what was kept for it, if it is there and listens."""
        if self._console is not None and self._early and not self._waits():
            self._console.type(self._early)
            self._early = b""
            self._greeted = True

    def _give(self) -> bool:
        assert self._caller is not None
        try:
            while self._said:
                del self._said[: self._caller.send(self._said[:_AT_ONCE])]
        except BlockingIOError:
            pass
        except OSError:
            return False
        return True

    def _ready(self, mask: int) -> None:
        if self._caller is None:  # it was hung up on after the selector had seen it
            return
        if mask & selectors.EVENT_READ and not self._take():
            self._hang_up()
            return
        self._go_on()

    def _take(self) -> bool:
        """Take something that the caller says; False if it has gone."""
        assert self._caller is not None
        self._pass_on()
        # Once and for all: it may begin to listen at any moment.
        listener = None if self._console is None or self._early or not self._console.heard else self._console
        if listener is not None and listener.full:
            return True
        try:
            data = self._caller.recv(_AT_ONCE if listener is None else listener.room)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if listener is not None:
            listener.type(data)
        else:
            self._early = (self._early + data)[-_MOST_EARLY:]
        return bool(data)

    def _hang_up(self) -> None:
        """Be done with the caller; the next one may come."""
        self._watch(0)
        with self._lock:
            caller, self._caller = self._caller, None
            self._said.clear()
        self._early = b""
        if caller is not None:
            caller.close()
        self._listen()

    def _watch(self, mask: int) -> None:
        assert self._caller is not None
        if mask == self._mask:
            return
        if self._mask and mask:
            self._loop.selector.modify(self._caller, mask, self._ready)
        elif mask:
            self._loop.selector.register(self._caller, mask, self._ready)
        else:
            self._loop.selector.unregister(self._caller)
        self._mask = mask

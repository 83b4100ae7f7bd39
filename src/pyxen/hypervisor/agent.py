"""``agent.sock``: where xend speaks to the agent in the guest, through a console of its own (backend.channel).

One caller at a time; others wait in the socket. What the guest says while nobody listens is thrown away.

Linux takes 16 bytes at a time from such a console, so nothing is said that need not be: a caller that goes in the midst
of a frame has it ended here, and the next one need not. And Linux's thread that reads consoles must come to rest before
a guest can suspend itself, so there is silence while it is to.
"""

from __future__ import annotations

import selectors
import socket
import threading
from typing import Final

from pyxen.abi.agent import HEADER_SIZE, MOST_COMMANDS, MOST_PAYLOAD, OUTPUT_WINDOW
from pyxen.backend.console import Console
from pyxen.hypervisor.loop import Loop

DEVID: Final = 1
_AT_ONCE: Final = 65536
_MOST_KEPT: Final = 4096
_MOST_SAID: Final = 2 * MOST_COMMANDS * OUTPUT_WINDOW + _AT_ONCE
"""Bytes of the guest's that wait for the caller: what an agent may send before it is told to go on, and answers."""


class _Place:
    """Where in a frame the guest is left by what it has been given."""

    def __init__(self) -> None:
        self._header = b""
        self._left = 0

    def passed(self, data: bytes) -> None:
        at = 0
        while at < len(data):
            if self._left:
                step = min(self._left, len(data) - at)
                self._left -= step
            elif not self._header and not data[at]:  # padding
                step = 1
            else:
                step = min(HEADER_SIZE - len(self._header), len(data) - at)
                self._header += data[at : at + step]
                if len(self._header) == HEADER_SIZE:
                    self._left, self._header = self._length(), b""
            at += step

    def missing(self) -> int:
        """How many zeros end the frame."""
        return HEADER_SIZE - len(self._header) + self._length() if self._header else self._left

    def _length(self) -> int:
        return min(MOST_PAYLOAD, int.from_bytes(self._header[4:], "little"))


class AgentSocket:
    """The channel's end on the host: a ``HostEnd``. For the main loop's thread, unless told otherwise."""

    def __init__(self, fd: int, loop: Loop) -> None:
        """``fd`` is the listening socket's, which now belongs to this object."""
        self._listener = socket.socket(fileno=fd)
        self._listener.setblocking(False)
        self._loop = loop
        self._caller: socket.socket | None = None
        self._console: Console | None = None
        self._place = _Place()
        self._lock = threading.Lock()
        self._said = bytearray()
        self._kept = b""
        self._zeros = 0
        self._silent = False
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
        if self._kept or self._zeros:
            self._go_on_soon()

    def ready(self, console: Console | None) -> None:
        had, self._console = self._console, console
        if had is not None:
            # The agent that it led to is gone, and so is what it was told of.
            self._place, self._zeros = _Place(), 0
            if self._caller is not None:
                self._hang_up()
        self._go_on()

    def silence(self, on: bool) -> None:
        """Give the guest nothing to read for now, or go on."""
        self._silent = on
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
        """Give each side what there is for it, and listen to the caller as long as the guest takes what it says."""
        if not self._open:
            return
        self._pass_on()
        if self._caller is None:
            return
        with self._lock:
            alive = len(self._said) <= _MOST_SAID and self._give()
            waiting = bool(self._said)
        if not alive:
            self._hang_up()
            return
        full = len(self._kept) >= _MOST_KEPT
        self._watch((0 if full else selectors.EVENT_READ) | (selectors.EVENT_WRITE if waiting else 0))

    def _pass_on(self) -> None:
        """Give the guest the rest of a frame whose caller has gone, then what the caller has said."""
        console = self._console
        if console is None or self._silent:
            return
        if self._zeros and (room := console.room):
            console.type(bytes(min(self._zeros, room)))
            self._zeros -= min(self._zeros, room)
        if self._kept and not self._zeros and (room := console.room):
            piece, self._kept = self._kept[:room], self._kept[room:]
            console.type(piece)
            self._place.passed(piece)

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
        if mask & selectors.EVENT_READ and not self._take(self._caller):
            self._hang_up()
            return
        self._go_on()

    def _take(self, caller: socket.socket) -> bool:
        """Take something that the caller says; False if it has gone."""
        if len(self._kept) >= _MOST_KEPT:
            return True
        try:
            data = caller.recv(_MOST_KEPT - len(self._kept))
        except BlockingIOError:
            return True
        except OSError:
            return False
        self._kept += data
        return bool(data)

    def _hang_up(self) -> None:
        """Be done with the caller; the next one may come."""
        self._watch(0)
        with self._lock:
            caller, self._caller = self._caller, None
            self._said.clear()
        self._kept = b""
        if not self._zeros:
            self._zeros, self._place = self._place.missing(), _Place()
        if caller is not None:
            caller.close()
        self._listen()
        self._pass_on()

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

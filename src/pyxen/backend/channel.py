"""A console beyond the first (``device/console/N``), as Xen's channels are: Linux's hvc_xen makes it ``/dev/hvcN``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from pyxen.backend.console import Console
from pyxen.backend.guest import Guest, Port
from pyxen.backend.xenbus import Address, Device, DeviceError, Frontend
from pyxen.xenstore.local import Local

_LIMIT = 1 << 20
_PROTOCOL = "vt100"
_MOST_WAITING = 4096
"""Bytes for the guest: it takes them slowly, and what has been given to it can't be taken back."""


class HostEnd(Protocol):
    """What a channel leads to on the host."""

    def write(self, data: bytes) -> None:
        """The guest has printed this. In a VCPU's thread; never blocks."""
        ...

    def ready(self, console: Console | None) -> None:
        """The guest's end is there, or is there no longer. On the main loop."""
        ...

    def taken(self) -> None:
        """The guest may have read. In a VCPU's thread; never blocks."""
        ...

    def close(self) -> None: ...


class Channel:
    """The driver of one such console, for ``Device``. Owns ``end``."""

    def __init__(self, guest: Guest, end: HostEnd) -> None:
        self._guest = guest
        self._end = end
        self._console: Console | None = None
        self._port: Port | None = None
        self._ref = 0

    def offer(self) -> Mapping[str, str | int]:
        return {}

    def connect(self, frontend: Frontend) -> Mapping[str, str | int]:
        ref, number = frontend.number("ring-ref"), frontend.number("port")
        if frontend.text("protocol") not in (None, _PROTOCOL):
            raise DeviceError(f"the protocol {frontend.text('protocol')!r} is unknown")
        console = Console(self._guest.grants.map(ref, write=True), self._end.write, self._notify, _MOST_WAITING)
        self._console, self._ref = console, ref
        try:
            self._port = self._guest.evtchn.bind_backend(number, self._event)
        except BaseException:
            self.disconnect()
            raise
        # What it has printed before was taken without a word.
        self._port.notify()
        self._end.ready(console)
        return {}

    def disconnect(self) -> None:
        if self._console is None:
            return
        self._end.ready(None)
        if self._port is not None:
            # After this no VCPU is in ``_event``, nor will one be.
            self._port.close()
        self._port = self._console = None
        self._guest.grants.unmap(self._ref)

    def settle(self) -> None:
        """Nothing: what is on its way to the agent ends with the conversation."""

    def close(self) -> None:
        self._end.close()

    def _event(self) -> None:
        if (console := self._console) is not None:
            console.on_event()
            self._end.taken()

    def _notify(self) -> None:
        if (port := self._port) is not None:
            port.notify()


def attach(local: Local, guest: Guest, devid: int, end: HostEnd) -> Device:
    """The running back end of a console that ``introduce`` has written."""
    return Device(local, Address(guest.domid, "console", devid), Channel(guest, end))


def describe(devid: int, name: str) -> tuple[dict[str, str | int], dict[str, str | int]]:
    """What libxl writes for a channel: the front end's and the back end's keys, for ``introduce``."""
    back: dict[str, str | int] = {"name": name, "connection": "socket", "protocol": _PROTOCOL}
    front: dict[str, str | int] = {
        "name": name,
        "type": "ioemu",
        "output": f"chardev:libxl-channel{devid}",
        "tty": "",
        "limit": _LIMIT,
        "protocol": _PROTOCOL,
    }
    return front, back

"""A split device's life, as the back end sees it: what both halves write into the store, and when.

    toolstack    writes both halves, state Initialising
    back end     writes what it can do; InitWait
    front end    reads that, offers rings and event channels; Initialised, or Connected at once
    back end     maps them, writes what the device is like; Connected
    either       Closing, Closed; a front end that starts anew (kexec, driver reload) goes to Initialising again

All of it runs on the main loop, driven by a watch on the front end's ``state``. What the device does is its driver's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from pyxen.abi.errno import XenError
from pyxen.abi.xenbus import XenbusState
from pyxen.backend.guest import GrantError
from pyxen.xenstore.local import Local


class DeviceError(Exception):
    """The front end has offered what can't be used; the text is for whoever looks into the store."""


@dataclass(frozen=True, slots=True)
class Address:
    """Which device of which domain: ``kind`` is vbd, vif, …, ``devid`` a number that is unique within the kind."""

    domid: int
    kind: str
    devid: int

    @property
    def frontend(self) -> str:
        return f"/local/domain/{self.domid}/device/{self.kind}/{self.devid}"

    @property
    def backend(self) -> str:
        return f"/local/domain/0/backend/{self.kind}/{self.domid}/{self.devid}"

    @property
    def error(self) -> str:
        return f"/local/domain/0/error/backend/{self.kind}/{self.domid}/{self.devid}/error"


class Frontend:
    """What the front end has written. Every method raises DeviceError for what is missing or is no such thing."""

    def __init__(self, local: Local, path: str) -> None:
        self._local = local
        self._path = path

    def text(self, key: str) -> str | None:
        return self._local.read(f"{self._path}/{key}")

    def number(self, key: str, default: int | None = None, *, most: int = 0xFFFF_FFFF) -> int:
        """A decimal number up to ``most``; ``default`` if the key is missing."""
        raw = self.text(key)
        if raw is None:
            if default is None:
                raise DeviceError(f"{self._path}/{key} is missing")
            return default
        if not (raw.isascii() and raw.isdigit() and len(raw) <= 10 and int(raw) <= most):
            raise DeviceError(f"{self._path}/{key} is no number from 0 to {most}")
        return int(raw)

    def flag(self, key: str, *, default: bool = False) -> bool:
        return self.number(key, int(default)) != 0

    def below(self, key: str) -> Frontend:
        """The same of a sub-directory: ``queue-0``."""
        return Frontend(self._local, f"{self._path}/{key}")


class Driver(Protocol):
    """What a kind of device does in its states. All methods are called on the main loop."""

    def offer(self) -> Mapping[str, str | int]:
        """What the front end may choose from."""
        ...

    def connect(self, frontend: Frontend) -> Mapping[str, str | int]:
        """Map rings, start to work; returns what the front end is to know. Raises DeviceError, GrantError, XenError."""
        ...

    def disconnect(self) -> None:
        """Finish what has begun, give all of the guest's memory back. May be called twice."""
        ...

    def settle(self) -> None:
        """Wait, in whatever thread, until what the guest has asked for by now is done for good. Raises OSError."""
        ...

    def close(self) -> None:
        """The device goes for good: let go of the host's side."""
        ...


class Device:
    """One device and its driver; ``on_removed`` is called when both halves are gone from the store."""

    def __init__(self, local: Local, address: Address, driver: Driver) -> None:
        self.address = address
        self.state = XenbusState.INITIALISING
        self.on_removed: Callable[[], None] = lambda: None
        self.driver = driver
        self._local = local
        self._leaving = False
        self._watch = None
        self._begin()
        self._watch = local.watch(f"{address.frontend}/state", lambda _: self._look())

    def request_close(self) -> None:
        """Ask the front end to let go; when it has, both halves disappear."""
        if self._leaving:
            return
        self._leaving = True
        self._local.write(f"{self.address.backend}/online", 0)
        if self.state is XenbusState.CLOSED or self._frontend_state() in (XenbusState.UNKNOWN, XenbusState.CLOSED):
            self._remove()
        else:
            self._go(XenbusState.CLOSING)

    def take_away(self) -> None:
        """Stop at once, whatever the front end says, and have both halves disappear."""
        self._leaving = True
        self._remove()

    def destroy(self) -> None:
        """The domain has gone: stop at once, whatever the front end says."""
        if self._watch is not None:
            self._watch.close()
        self.driver.disconnect()
        self.driver.close()

    def settle(self) -> None:
        """Wait until what the guest has asked for by now is done for good. In any thread. Raises OSError."""
        self.driver.settle()

    def update(self, values: Mapping[str, str | int]) -> None:
        """Something about the device has changed, as a disk's size: tell the front end."""
        prefix = self.address.backend
        self._local.write_all({f"{prefix}/{key}": value for key, value in values.items()})
        # Front ends look again whenever the state is written, also to what it was.
        self._local.write(f"{prefix}/state", int(self.state))

    def fail(self, why: str) -> None:
        """The front end has done what can't be: note it, let go of it."""
        self._local.write(self.address.error, why)
        self.driver.disconnect()
        self._go(XenbusState.CLOSING)

    def _begin(self) -> None:
        prefix = self.address.backend
        offered = {f"{prefix}/{key}": value for key, value in self.driver.offer().items()}
        self._local.write_all({**offered, f"{prefix}/hotplug-status": "connected"})
        self._go(XenbusState.INIT_WAIT)

    def _frontend_state(self) -> XenbusState:
        raw = self._local.read(f"{self.address.frontend}/state") or "0"
        try:
            return XenbusState(int(raw))
        except ValueError:
            return XenbusState.UNKNOWN

    def _look(self) -> None:
        """The front end's state has (perhaps) changed."""
        match self._frontend_state():
            case XenbusState.INITIALISING:
                if self.state in (XenbusState.CLOSED, XenbusState.CLOSING, XenbusState.CONNECTED) and not self._leaving:
                    self.driver.disconnect()
                    self._begin()
            case XenbusState.INITIALISED | XenbusState.CONNECTED:
                if self.state is XenbusState.INIT_WAIT:
                    self._connect()
            case XenbusState.CLOSING:
                self.driver.disconnect()
                if self.state is not XenbusState.CLOSED:
                    self._go(XenbusState.CLOSING)
            case XenbusState.CLOSED | XenbusState.UNKNOWN:
                self._closed()

    def _connect(self) -> None:
        try:
            told = self.driver.connect(Frontend(self._local, self.address.frontend))
        except (DeviceError, GrantError, XenError) as error:
            self.fail(str(error))
            return
        prefix = self.address.backend
        self._local.write_all({f"{prefix}/{key}": value for key, value in told.items()})
        self._go(XenbusState.CONNECTED)

    def _closed(self) -> None:
        self.driver.disconnect()
        if self._leaving:
            self._remove()
        elif self.state not in (XenbusState.CLOSED, XenbusState.INIT_WAIT):
            self._go(XenbusState.CLOSED)

    def _remove(self) -> None:
        self._go(XenbusState.CLOSED)
        self.destroy()
        self._local.remove(self.address.frontend)
        self._local.remove(self.address.backend)
        self.on_removed()

    def _go(self, state: XenbusState) -> None:
        if state is not self.state:
            self.state = state
            self._local.write(f"{self.address.backend}/state", int(state))


def introduce(
    local: Local,
    address: Address,
    *,
    frontend: Mapping[str, str | int] | None = None,
    backend: Mapping[str, str | int] | None = None,
) -> None:
    """Write both halves of a new device, as the tool stack does, before its ``Device`` is made."""
    front, back = address.frontend, address.backend
    state = int(XenbusState.INITIALISING)
    local.write_all(
        {
            f"{back}/frontend": front,
            f"{back}/frontend-id": address.domid,
            f"{back}/online": 1,
            f"{back}/state": state,
            **{f"{back}/{key}": value for key, value in (backend or {}).items()},
        },
        {back: ["n0", f"r{address.domid}"]},
    )
    local.write_all(
        {
            f"{front}/backend": back,
            f"{front}/backend-id": 0,
            f"{front}/state": state,
            **{f"{front}/{key}": value for key, value in (frontend or {}).items()},
        },
        {front: [f"n{address.domid}", "r0"]},
    )

"""What a back end needs of the domain that it serves, and of the loop that it runs on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from pyxen.abi.grant_table import GrantError as GrantError


class Port(Protocol):
    """Domain-0's end of an event channel. Its methods may be called from any thread."""

    def notify(self) -> None:
        """Raise the guest's event."""
        ...

    def close(self) -> None:
        """Let go; may be called twice."""
        ...


class EventChannels(Protocol):
    def bind_backend(self, port: int, callback: Callable[[], None]) -> Port:
        """Take the other end of a port that the guest offers; raises XenError if it offers no such port.

        ``callback`` is called at once, then for each event, in a VCPU's thread and under the domain's lock: it only
        wakes somebody.
        """
        ...


class Grants(Protocol):
    """May be called from any thread."""

    def map(self, ref: int, *, write: bool) -> memoryview:
        """The 4,096 bytes that the guest has granted to Domain-0. Raises GrantError."""
        ...

    def unmap(self, ref: int) -> None:
        """Give back what ``map`` gave, once for each call."""
        ...


class Guest(Protocol):
    """A domain as its back ends see it."""

    @property
    def domid(self) -> int: ...

    @property
    def evtchn(self) -> EventChannels: ...

    @property
    def grants(self) -> Grants: ...


CallSoon = Callable[[Callable[[], None]], None]
"""Run something on the main loop, from whatever thread."""

"""Tells, in the domain's ``events``, of changes in what the guest uses: which VCPUs are up, how much memory it has.

Both change in many small steps, from the VCPUs' threads; what is told is how it is a moment later.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pyxen.hypervisor.builder.layout import MIB
from pyxen.hypervisor.events import Events
from pyxen.hypervisor.loop import Loop, Timer
from pyxen.hypervisor.memory import PAGE_SIZE

_VCPUS_NS: Final = 10_000_000
_MEMORY_NS: Final = 250_000_000


class Changes:
    """``vcpus`` and ``memory`` may be called from any thread, and often."""

    def __init__(
        self, loop: Loop, events: Events, *, online: Callable[[], frozenset[int]], pages: Callable[[], int]
    ) -> None:
        self._events = events
        self._online = online
        self._pages = pages
        self._last_online: frozenset[int] = frozenset()
        self._last_mib = 0
        self._vcpus = _Settling(loop, _VCPUS_NS, self._tell_vcpus)
        self._memory = _Settling(loop, _MEMORY_NS, self._tell_memory)

    def vcpus(self) -> None:
        """A VCPU may have gone up or down."""
        self._vcpus.begin()

    def memory(self) -> None:
        """The guest may be giving pages back, or taking some."""
        self._memory.begin()

    def close(self) -> None:
        self._vcpus.close()
        self._memory.close()

    def _tell_vcpus(self) -> None:
        online = self._online()
        if online != self._last_online:
            self._last_online = online
            self._events.vcpus_changed(online)

    def _tell_memory(self) -> None:
        size = self._pages() * PAGE_SIZE
        if size // MIB != self._last_mib:
            self._last_mib = size // MIB
            self._events.memory_changed(size)


class _Settling:
    """Calls ``tell`` some time after ``begin``, once for all that came meanwhile."""

    def __init__(self, loop: Loop, delay_ns: int, tell: Callable[[], None]) -> None:
        self._loop = loop
        self._delay_ns = delay_ns
        self._tell = tell
        self._timer = Timer(loop, self._fire)
        self._begun = False

    def begin(self) -> None:
        if not self._begun:
            self._begun = True
            self._loop.call_soon(lambda: self._timer.arm(self._delay_ns))

    def close(self) -> None:
        self._timer.close()

    def _fire(self) -> None:
        self._begun = False
        self._tell()

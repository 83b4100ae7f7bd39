"""VCPUs that the guest seems to be taking offline, looked at until they are or a second has passed.

Linux on PVH tells the hypervisor nothing: the VCPU halts with interrupts off, and another one closes its event
channels, maybe a moment before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pyxen.hypervisor.loop import Loop, Timer

_FIRST_NS: Final = 1_000_000
_LOOKS: Final = 10


class Departures:
    """``still_up`` looks at a VCPU, maybe to an effect that the next look sees. All but ``expect`` is for the loop."""

    def __init__(self, loop: Loop, still_up: Callable[[int], bool]) -> None:
        self._loop = loop
        self._still_up = still_up
        self._timer = Timer(loop, self._look)
        self._looks: dict[int, int] = {}

    def expect(self, vcpu: int) -> None:
        """Look at this VCPU from now on. From any thread."""
        self._loop.call_soon(lambda: self._begin(vcpu))

    def close(self) -> None:
        self._timer.close()

    def _begin(self, vcpu: int) -> None:
        self._looks[vcpu] = 0
        self._timer.arm(_FIRST_NS)

    def _look(self) -> None:
        self._looks = {
            vcpu: count + 1 for vcpu, count in self._looks.items() if count < _LOOKS and self._still_up(vcpu)
        }
        if self._looks:
            self._timer.arm(_FIRST_NS << min(self._looks.values()))

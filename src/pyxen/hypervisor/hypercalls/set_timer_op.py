"""SET_TIMER_OP: the calling VCPU's singleshot timer, in the old way."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyxen.hypervisor.vcpu import Vcpu


def handle(vcpu: Vcpu, args: tuple[int, ...], bits: int) -> int:
    """(absolute system time in ns): one register, or two of 32 bits. 0 stops the timer."""
    deadline = args[0] if bits == 64 else args[0] | args[1] << 32
    vcpu.domain.timers.set_singleshot(vcpu.index, deadline or None)
    return 0

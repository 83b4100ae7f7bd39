"""The guest's system time: nanoseconds made of the TSC, by the same sum on both sides.

Guests read their TSC, which is the host's plus an offset, and scale it by the numbers of ``struct vcpu_time_info``. So
does this clock: a deadline that the guest has computed means the same instant here, however long it runs.
"""

from __future__ import annotations

import ctypes
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from pyxen.abi.vcpu import PVCLOCK_TSC_STABLE
from pyxen.hypervisor import machine_code
from pyxen.hypervisor.builder.cpuid import tsc_scale
from pyxen.hypervisor.machine import PvClock

_CLOCKSOURCE: Final = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
_U64: Final = (1 << 64) - 1


@functools.cache
def _rdtsc() -> Callable[[], int]:
    # rdtsc; shl rdx, 32; or rax, rdx; ret
    address = machine_code.load({"rdtsc": "0f31 48c1e220 4809d0 c3"})["rdtsc"]
    return ctypes.PYFUNCTYPE(ctypes.c_uint64)(address)


def host_tsc() -> int:
    """This CPU's time stamp counter."""
    return _rdtsc()()


def _host_trusts_tsc() -> bool:
    """Do all CPUs' counters agree, as far as the host knows? KVM itself goes by its choice of clock."""
    try:
        return _CLOCKSOURCE.read_text().strip() == "tsc"
    except OSError:
        return False


class Scale(NamedTuple):
    """What KVM makes of the host's TSC for guests whose own runs at another frequency."""

    ratio: int
    bits: int
    """Of ``ratio``, after the binary point."""

    def of(self, tsc: int) -> int:
        """Modulo 2⁶⁴."""
        return (tsc * self.ratio >> self.bits) & _U64


UNSCALED: Final = Scale(1, 0)


class GuestClock:
    """``offsets`` are, for each VCPU, its TSC less the host's, modulo 2⁶⁴, or less what ``scale`` makes of that.

    System time is ``since_ns`` to begin with, when the host's TSC is ``start``, by default now. ``tsc_khz`` is the
    guest's.
    """

    def __init__(
        self,
        tsc_khz: int,
        offsets: list[int],
        *,
        since_ns: int = 0,
        start: int | None = None,
        scale: Scale = UNSCALED,
    ) -> None:
        self.offsets = offsets
        self.tsc_khz = tsc_khz
        self._scale = None if scale == UNSCALED else scale
        self._since_ns = since_ns
        self._rdtsc = _rdtsc()
        self._shift, self._mul = tsc_scale(tsc_khz)
        self._flags = PVCLOCK_TSC_STABLE if len(set(offsets)) == 1 and _host_trusts_tsc() else 0
        self._start = self._scaled(self._rdtsc() if start is None else start)

    def now_ns(self) -> int:
        """System time."""
        return self.at(self._rdtsc())

    def at(self, host_tsc: int) -> int:
        """System time when the host's TSC is this."""
        # Another CPU's counter may be a little behind the one that the start was read from.
        ticks = max(0, (host_tsc if self._scale is None else self._scale.of(host_tsc)) - self._start)
        ticks = ticks << self._shift if self._shift >= 0 else ticks >> -self._shift
        return self._since_ns + (ticks * self._mul >> 32)

    def tsc(self, vcpu: int, host_tsc: int) -> int:
        """The VCPU's TSC when the host's is this."""
        return (self._scaled(host_tsc) + self.offsets[vcpu]) & _U64

    def _scaled(self, host_tsc: int) -> int:
        return host_tsc if self._scale is None else self._scale.of(host_tsc)

    def wallclock_ns(self) -> int:
        """The time of day at which system time was 0."""
        return time.time_ns() - self.now_ns()

    def pvclock(self, vcpu: int) -> PvClock:
        """A VCPU's numbers; they hold for as long as its TSC runs undisturbed."""
        return PvClock((self._start + self.offsets[vcpu]) & _U64, self._since_ns, self._mul, self._shift, self._flags)

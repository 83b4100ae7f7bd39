"""A domain's state on its way into a descriptor, its memory perhaps while the guest still runs.

    rounds    all of RAM, then what has been written meanwhile, again and again, until the rest is small enough
    finish    the guest stands still: the rest, everything that is not RAM, Xen's side, the VCPUs

What the guest writes KVM notes; what is written by Xen and back ends GuestMemory does. Pages that somebody here may
write at any time (shared_info, rings, granted pages in use) go with the last round in any case.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from pyxen.hypervisor.domain import Domain
from pyxen.hypervisor.memory import PAGE_SHIFT, PAGE_SIZE, Region
from pyxen.hypervisor.state import ram, save
from pyxen.hypervisor.state.sections import Writer
from pyxen.hypervisor.state.stop import Stop
from pyxen.hypervisor.state.words import Cpu, Xen

_FIRST_THROTTLE: Final = 0.2
_MORE_THROTTLE: Final = 0.1
_MOST_THROTTLE: Final = 0.99
_SHORTEST_S: Final = 0.001


class Logged(Protocol):
    """What is asked of the machine while its guest runs. ``log_writes`` and ``written`` with domain.lock held."""

    @property
    def tsc_khz(self) -> int: ...

    def log_writes(self, region: Region, on: bool) -> None: ...

    def written(self, region: Region) -> int:
        """A bit for each of the region's pages that the guest has written since it was asked last."""
        ...

    def throttle(self, share: float) -> None:
        """Keep the VCPUs out of guest code for this share of the time, from 0 up to less than 1."""
        ...


@dataclass(frozen=True, slots=True)
class Pace:
    """How the memory of a running guest is sent; see engine.contract.Limits."""

    bandwidth: int | None = None
    downtime_ms: int = 300
    converge: bool = True


class Sending:
    """One stream. ``rounds``, if at all, and ``finish`` run in threads, one after the other; the rest in any.

    Both raise OSError (nobody reads, or the disk is full), Conflict (called off) and EngineError; then, as after
    ``finish``, only ``close`` is left to be called.
    """

    def __init__(self, fd: int, domain: Domain, machine: Logged, pace: Pace | None = None) -> None:
        """Takes a copy of ``fd``."""
        self._domain = domain
        self._machine = machine
        self._pace = pace or Pace()
        own = len(domain.memory_map)
        self._own = domain.memory.regions[:own]
        self._ram = [region for region in self._own if domain.reservation.is_ram(region.start >> PAGE_SHIFT)]
        self._fd = os.dup(fd)
        os.set_blocking(self._fd, False)
        self._stop = Stop()
        self._logging = False
        self._left: dict[int, int] = {}
        self._throttled = 0.0
        self._rate = 0.0
        self.sent = 0
        """Bytes of memory dealt with so far, those sent again counted again."""
        self.remaining = sum(len(region.data) for region in self._ram)
        """Bytes that are left to be sent, as far as is known."""
        self.round = 1

    def rounds(self) -> None:
        """Send memory until what is left can be sent in ``downtime_ms``, or for ever."""
        self._writer = Writer(self._fd, self._stop)
        save.head(self._writer, len(self._domain.vcpus), self._own, self._machine.tsc_khz)
        self._log(True)
        self._round(piece for region in self._ram for piece in ram.write(self._writer, region))
        slow = 0
        while True:
            before, self.remaining = self.sent, self._collect()
            if self.remaining <= self._rate * self._pace.downtime_ms / 1000:
                break
            pages, self._left = self._left, {}
            self.round += 1
            self._round(
                piece for region in self._ram for piece in ram.write_again(self._writer, region, pages[region.start])
            )
            # As QEMU's: twice in a row more than half as much was written as was sent.
            slow = slow + 1 if 2 * self._collect() > self.sent - before else 0
            if slow >= 2 and self._pace.converge:
                slow = 0
                self._throttle()
        self._machine.throttle(0.0)

    def finish(self, xen: Xen, cpus: Sequence[Cpu]) -> int:
        """Send what is left, of a guest that stands still; how many bytes the stream has."""
        added = self._domain.memory.regions[len(self._own) :]
        if not self._logging:
            self._writer = Writer(self._fd, self._stop)
            save.head(self._writer, len(cpus), self._own, self._machine.tsc_khz)
        save.frames(self._writer, added)
        if self._logging:
            with self._domain.lock:
                self._add(self._domain.memory.kept | self._domain.grants.written())
            self.remaining = self._collect()
            self.round += 1
        for region in self._ram:
            again = ram.write_again(self._writer, region, self._left.get(region.start, 0))
            for piece in again if self._logging else ram.write(self._writer, region):
                self._count(piece)
        for region in (*self._own, *added):
            if not any(region is each for each in self._ram):
                for _ in ram.write(self._writer, region):
                    pass
        save.end(self._writer, xen, cpus)
        return self._writer.written

    def stop(self) -> None:
        """Call it off: what runs in a thread ends soon."""
        self._stop.set()

    def close(self) -> None:
        """Let go of everything. Nothing of it runs in a thread any more."""
        self._machine.throttle(0.0)
        self._log(False)
        self._stop.close()
        os.close(self._fd)

    def _log(self, on: bool) -> None:
        if on == self._logging:
            return
        with self._domain.lock:
            for region in self._ram:
                self._machine.log_writes(region, on)
            self._domain.memory.note_writes(on)
        self._logging = on

    def _round(self, pieces: Iterable[int]) -> None:
        began, before = time.monotonic(), self.sent
        for piece in pieces:
            self._count(piece)
            if self._pace.bandwidth is not None:
                ahead = (self.sent - before) / self._pace.bandwidth - (time.monotonic() - began)
                if ahead > _SHORTEST_S:
                    self._stop.sleep(ahead)
            self._stop.check()
        self._rate = (self.sent - before) / max(_SHORTEST_S, time.monotonic() - began)

    def _count(self, piece: int) -> None:
        self.sent += piece
        self.remaining = max(0, self.remaining - piece)

    def _collect(self) -> int:
        """See what has been written since the last time; how many bytes are left to be sent."""
        with self._domain.lock:
            for region in self._ram:
                self._left[region.start] = self._left.get(region.start, 0) | self._machine.written(region)
            self._add(self._domain.memory.take_written())
        return sum(pages.bit_count() for pages in self._left.values()) * PAGE_SIZE

    def _add(self, frames: Iterable[int]) -> None:
        """Have these sent again. Those outside of RAM go last anyway."""
        for region, numbers in self._in_ram(frames):
            bits = bytearray(-(-len(region.data) // (8 * PAGE_SIZE)))
            for number in numbers:
                bits[number >> 3] |= 1 << (number & 7)
            self._left[region.start] = self._left.get(region.start, 0) | int.from_bytes(bits, "little")

    def _in_ram(self, frames: Iterable[int]) -> Iterator[tuple[Region, list[int]]]:
        frames = list(frames)
        for region in self._ram:
            first, end = region.start >> PAGE_SHIFT, region.end >> PAGE_SHIFT
            yield region, [frame - first for frame in frames if first <= frame < end]

    def _throttle(self) -> None:
        share = self._throttled + _MORE_THROTTLE if self._throttled else _FIRST_THROTTLE
        self._throttled = min(share, _MOST_THROTTLE)
        self._machine.throttle(self._throttled)

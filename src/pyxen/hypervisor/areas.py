"""What a guest asks to be kept up to date in its own memory: runstate and a copy of the clock, for each VCPU.

An area is named by a virtual address once, and may straddle two pages. One that can't be found is accepted and never
written, as by Xen: guests don't expect a refusal here.
"""

from __future__ import annotations

from pyxen.abi.vcpu import (
    RUNSTATE_INFO,
    RUNSTATE_OFFLINE,
    RUNSTATE_RUNNING,
    RUNSTATE_UPDATE,
    VCPU_TIME_INFO,
    RunstateInfo,
    VcpuTimeInfo,
)


class Area:
    """Guest memory in one or two pieces."""

    def __init__(self) -> None:
        self.pieces: list[memoryview] = []
        self.bits = 64

    def set(self, pieces: list[memoryview], bits: int) -> None:
        self.pieces = pieces
        self.bits = bits

    def clear(self) -> None:
        self.pieces = []

    def write(self, data: bytes, offset: int = 0) -> None:
        """Store ``data`` from ``offset`` on."""
        for piece in self.pieces:
            part = data[: max(0, len(piece) - offset)]
            if part:
                piece[offset : offset + len(part)] = part
            data = data[len(part) :]
            offset = max(0, offset - len(piece))


class RunstateArea(Area):
    """How long the VCPU has been in which state; guests make "stolen time" of it."""

    def __init__(self) -> None:
        super().__init__()
        self.state = RUNSTATE_OFFLINE
        self.entry_time = 0
        self.times = [0, 0, 0, 0]

    def change(self, state: int, now_ns: int, *, flag_updates: bool) -> None:
        """Enter ``state`` and show it. ``flag_updates``: mark the area while it is being written (vm_assist)."""
        self.times[self.state] += max(0, now_ns - self.entry_time)
        self.state = state
        self.entry_time = now_ns
        self.show(flag_updates=flag_updates)

    def info(self, now_ns: int | None = None) -> RunstateInfo:
        """The state so far; with ``now_ns``, the time in the present state counted up to now."""
        times = list(self.times)
        if now_ns is not None:
            times[self.state] += max(0, now_ns - self.entry_time)
        return RunstateInfo(self.state, self.entry_time, *times)

    def show(self, *, flag_updates: bool) -> None:
        if not self.pieces:
            return
        info = self.info()
        if flag_updates:
            at = RUNSTATE_INFO.offset(self.bits, "entry_time")
            self.write((info.entry_time | RUNSTATE_UPDATE).to_bytes(8, "little"), at)
            marked = info._replace(entry_time=info.entry_time | RUNSTATE_UPDATE)
            self.write(RUNSTATE_INFO.pack(marked, self.bits))
            self.write(info.entry_time.to_bytes(8, "little"), at)
        else:
            self.write(RUNSTATE_INFO.pack(info, self.bits))

    def reset(self, now_ns: int) -> None:
        """The VCPU runs from now on."""
        self.state, self.entry_time = RUNSTATE_RUNNING, now_ns


class TimeArea(Area):
    """A copy of vcpu_time_info where user space can see it (the vDSO's clock)."""

    def __init__(self) -> None:
        super().__init__()
        self._version = 0

    def update(self, time: VcpuTimeInfo) -> None:
        """Write ``time``; its version is odd meanwhile."""
        if not self.pieces:
            return
        self._version = (self._version + 2) & 0xFFFFFFFF
        self.write(((self._version - 1) & 0xFFFFFFFF).to_bytes(4, "little"))
        self.write(VCPU_TIME_INFO.pack(time, 64)[4:], 4)
        self.write(self._version.to_bytes(4, "little"))

"""``events``: what happens to the guest, as lines of JSON in QMP's words (QEMU's QMP reference, run-state)."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

from pyxen.abi.sched import (
    SHUTDOWN_CRASH,
    SHUTDOWN_POWEROFF,
    SHUTDOWN_REBOOT,
    SHUTDOWN_SOFT_RESET,
    SHUTDOWN_WATCHDOG,
)
from pyxen.hypervisor.jail import Report

_READY: Final = "ready"
_REASONS: Final = {
    SHUTDOWN_POWEROFF: "guest-shutdown",
    SHUTDOWN_REBOOT: "guest-reset",
    SHUTDOWN_SOFT_RESET: "guest-reset",
    SHUTDOWN_CRASH: "guest-panic",
}


class Events:
    """Appends to ``path``; each line goes out in one piece. From any thread."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)

    def ready(self, jail: Report) -> None:
        """Everything that was asked for is there, and the main loop runs; in which jail."""
        self._write({"return": {"jail": jail}, "id": _READY})

    def paused(self) -> None:
        self._event("STOP")

    def resumed(self) -> None:
        self._event("RESUME")

    def suspended(self) -> None:
        """The guest has put itself in order and stands still, until it is told to go on."""
        self._event("SUSPEND")

    def woken(self) -> None:
        self._event("WAKEUP")

    def guest_stopped(self, reason: int) -> None:
        """The guest's own end, with a SHUTDOWN_… reason."""
        if reason == SHUTDOWN_WATCHDOG:
            self._event("WATCHDOG", {"action": "pause"})
        elif reason == SHUTDOWN_CRASH:
            self._event("GUEST_PANICKED", {"action": "pause"})
        else:
            self._event("SHUTDOWN", {"guest": True, "reason": _REASONS.get(reason, "guest-shutdown")})

    def vcpus_changed(self, online: Iterable[int]) -> None:
        """These VCPUs are up now. Not one of QMP's."""
        self._event("VCPUS_CHANGED", {"online": sorted(online)})

    def memory_changed(self, size: int) -> None:
        """The guest has this many bytes now."""
        self._event("BALLOON_CHANGE", {"actual": size})

    def device_deleted(self, device: str) -> None:
        """The guest has let go of a device, or it was taken away: what it stood on is free."""
        self._event("DEVICE_DELETED", {"device": device})

    def failed(self) -> None:
        """The machine's end."""
        self._event("SHUTDOWN", {"guest": False, "reason": "host-error"})

    def destroyed(self) -> None:
        """This process was told to end."""
        self._event("SHUTDOWN", {"guest": False, "reason": "host-signal"})

    def close(self) -> None:
        os.close(self._fd)

    def _event(self, name: str, data: dict[str, object] | None = None) -> None:
        seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
        stamp = {"seconds": seconds, "microseconds": nanoseconds // 1000}
        self._write({"event": name, "timestamp": stamp, **({"data": data} if data is not None else {})})

    def _write(self, message: dict[str, object]) -> None:
        os.write(self._fd, msgspec.json.encode(message) + b"\n")

"""What a domain's ``events`` file says: lines of JSON as QMP sends them, whether or not a xend was there to listen.

Only what decides a domain's fate is read here. Lines of other kinds, half-written ones and plain garbage are passed
over: a file that the monitor appends to may end anywhere. Event names and data: QEMU's QMP reference (run-state).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from pyxen.api import ShutdownReason
from pyxen.engine.contract import Stopped

READY_ID = "ready"
"""The ``id`` of the command whose answer says that the monitor's main loop runs."""

_LONGEST_LINE = 1024 * 1024
_REASONS = {
    "guest-shutdown": ShutdownReason.POWEROFF,
    "guest-reset": ShutdownReason.REBOOT,
    "subsystem-reset": ShutdownReason.REBOOT,
    "guest-panic": ShutdownReason.CRASH,
    "host-error": ShutdownReason.FAILED,
    "host-qmp-quit": ShutdownReason.DESTROYED,
    "host-qmp-system-reset": ShutdownReason.REBOOT,
    "host-signal": ShutdownReason.DESTROYED,
    "host-ui": ShutdownReason.DESTROYED,
}


def parse_line(line: bytes) -> dict[str, Any] | None:
    """One line as a JSON object, or None if it isn't one."""
    try:
        message = msgspec.json.decode(line)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    return message if isinstance(message, dict) else None


@dataclass(slots=True)
class Fate:
    """What the events so far add up to."""

    ready: bool = False
    """The monitor has answered: it has accepted its devices and its main loop runs."""
    paused: bool = True
    """No VCPU may run. So it begins: domains are started stopped and then told to go on."""
    stalled: str | None = None
    """Why the monitor has paused it by itself: a disk that can't take what was written."""
    suspended: bool = False
    """The guest has put itself in order and stands still, until it is told to go on."""
    since: float | None = None
    """Seconds since 1970 when the guest last came to stand still, or went on, by the monitor's clock."""
    loaded: bool = False
    """The state that the monitor was to take in is there."""
    stopped: Stopped | None = None
    answer: dict[str, Any] = field(default_factory=dict)
    """What the monitor said of itself when it was ready."""
    errors: list[str] = field(default_factory=list)
    """What the monitor answered to the commands it was started with, where it refused them."""
    memory_bytes: int | None = None
    """What the guest has, after what its balloon has taken."""
    online: frozenset[int] | None = None
    """The VCPUs that are up, where the monitor is one that says so."""
    ports: set[str] = field(default_factory=set)
    """Ids of the serial ports that a program in the guest has opened."""
    unplugged: list[str] = field(default_factory=list)
    """Ids of devices that the guest has let go, in order; for the reader to empty."""

    def take(self, message: dict[str, Any]) -> None:
        """Take one more message into account."""
        if isinstance(error := message.get("error"), dict):
            self.errors.append(str(error.get("desc", error)))
        elif message.get("id") == READY_ID and "return" in message:
            self.ready = True
            self.answer = message["return"] if isinstance(message["return"], dict) else {}
        data = message.get("data")
        match message.get("event"):
            case "STOP":
                self.paused, self.since = True, _time(message)
            case "RESUME":
                self.paused, self.stalled, self.since = False, None, _time(message)
            case "BLOCK_IO_ERROR" if _get(data, "action") == "stop":
                disk = str(_get(data, "node-name") or _get(data, "device")).partition(".")[0]
                verb = "read" if _get(data, "operation") == "read" else "written to"
                self.stalled = f"its disk {disk} can't be {verb} on the host: {_get(data, 'reason')}"
            case "MIGRATION" if _get(data, "status") == "completed":
                self.loaded = True
            case "SUSPEND":
                self.suspended, self.since = True, _time(message)
            case "WAKEUP":
                self.suspended, self.since = False, _time(message)
            case "SHUTDOWN":
                self._stop(_REASONS.get(str(_get(data, "reason")), ShutdownReason.POWEROFF))
            case "RESET" if _get(data, "guest") is True:
                self._stop(ShutdownReason.REBOOT)
            case "GUEST_PANICKED":
                self._stop(ShutdownReason.CRASH)
            case "WATCHDOG":
                self._stop(ShutdownReason.WATCHDOG)
            case "BALLOON_CHANGE":
                if isinstance(actual := _get(data, "actual"), int):
                    self.memory_bytes = actual
            case "VCPUS_CHANGED":
                if isinstance(online := _get(data, "online"), list):
                    self.online = frozenset(number for number in online if isinstance(number, int))
            case "VSERPORT_CHANGE":
                if isinstance(port := _get(data, "id"), str):
                    (self.ports.add if _get(data, "open") is True else self.ports.discard)(port)
            case "DEVICE_DELETED":
                if isinstance(device := _get(data, "device"), str):
                    self.unplugged.append(device)
            case _:
                pass

    def _stop(self, reason: ShutdownReason) -> None:
        # The first one counts: a destroyed domain's SIGTERM is reported as well, after its guest's own power-off.
        if self.stopped is None:
            self.stopped = Stopped(reason)


def _time(message: dict[str, Any]) -> float | None:
    stamp = message.get("timestamp")
    seconds, rest = _get(stamp, "seconds"), _get(stamp, "microseconds")
    return seconds + rest / 1e6 if isinstance(seconds, int) and isinstance(rest, int) else None


def _get(data: object, key: str) -> object:
    return data.get(key) if isinstance(data, dict) else None


class EventLog:
    """Reads what has been appended to an ``events`` file since the last look, into a :class:`Fate`."""

    def __init__(self, path: Path) -> None:
        self.fate = Fate()
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._rest = b""

    def read(self) -> Fate:
        """Read to the end of the file; an unfinished last line waits for the next call."""
        while self._fd >= 0 and (data := os.read(self._fd, 65536)):
            *lines, self._rest = (self._rest + data).split(b"\n")
            if len(self._rest) > _LONGEST_LINE:
                self._rest = b""
            for line in lines:
                if (message := parse_line(line)) is not None:
                    self.fate.take(message)
        return self.fate

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

"""How much CPU and memory a domain's process has used, by proc(5): no question is sent to the monitor."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from pyxen.api import Vcpu
from pyxen.engine.contract import Statistics
from pyxen.engine.placement import ONE_THREAD

_TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_VCPU_THREAD = re.compile(r"CPU (\d+)/")
_ONE_FOR_ALL = re.compile(r"ALL CPUs/")


@dataclass(frozen=True, slots=True)
class _Stat:
    """The fields of /proc/PID/stat that are used here."""

    running: bool
    time_s: float
    resident_pages: int
    cpu: int


def _read_stat(path: str) -> _Stat | None:
    """One stat file; None when the thread is gone. The command's name may hold blanks and brackets: skip it."""
    try:
        fields = Path(path).read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    # proc(5) counts from 1 and has two fields before these: state 3, utime 14, stime 15, rss 24, processor 39.
    return _Stat(
        running=fields[0] == b"R",
        time_s=(int(fields[11]) + int(fields[12])) * _TICK_S,
        resident_pages=int(fields[21]),
        cpu=int(fields[36]),
    )


class ThreadClock:
    """Reads the clocks of one process and of its VCPU threads (QEMU names them ``CPU n/TCG`` and the like)."""

    def __init__(self, pid: int, vcpus: int) -> None:
        self._pid = pid
        self._count = vcpus
        self._threads: dict[int, int] | None = None

    def read(self, online: Collection[int]) -> Statistics:
        """What was used up to now; zeros when the process is gone. ``online`` are the VCPUs that the guest has."""
        whole = _read_stat(f"/proc/{self._pid}/stat") if self._pid else None
        if whole is None:
            return Statistics(0.0, [_vcpu(number, None, number in online) for number in range(self._count)], True, 0)
        if self._threads is None:
            self._threads = vcpu_threads(self._pid) or None
        threads = self._threads or {}
        stats = {number: _read_stat(f"/proc/{self._pid}/task/{tid}/stat") for number, tid in threads.items()}
        share = 1.0
        if ONE_THREAD in stats:
            share = 1.0 / max(1, len(online))
            stats = dict.fromkeys(online, stats[ONE_THREAD])
        if any(stats.get(number) is None for number in online):
            self._threads = None  # one has been plugged in since: find it the next time
        vcpus = [_vcpu(number, stats.get(number), number in online, share) for number in range(self._count)]
        return Statistics(
            cpu_time_s=whole.time_s,
            vcpus=vcpus,
            blocked=not any(stat is not None and stat.running for stat in stats.values()),
            resident_mib=whole.resident_pages * _PAGE_BYTES // (1024 * 1024),
        )


def vcpu_threads(pid: int) -> dict[int, int]:
    """Thread id of each VCPU's number, ``ONE_THREAD`` for a thread that serves all; empty as long as there are none."""
    found: dict[int, int] = {}
    try:
        for task in os.scandir(f"/proc/{pid}/task"):
            name = Path(task.path, "comm").read_text()
            if match := _VCPU_THREAD.match(name):
                found[int(match[1])] = int(task.name)
            elif _ONE_FOR_ALL.match(name):
                found[ONE_THREAD] = int(task.name)
    except OSError:
        return {}
    return found


def _vcpu(number: int, stat: _Stat | None, online: bool, share: float = 1.0) -> Vcpu:
    if not online:
        time_s = round(stat.time_s * share, 3) if stat else 0.0
        return Vcpu(number=number, online=False, state="--p", cpu=None, time_s=time_s)
    if stat is None:
        return Vcpu(number=number, online=True, state="-b-", cpu=None, time_s=0.0)
    return Vcpu(
        number=number,
        online=True,
        state="r--" if stat.running else "-b-",
        cpu=stat.cpu,
        time_s=round(stat.time_s * share, 3),
    )

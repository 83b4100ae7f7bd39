"""What weights and caps come to: busy guests on one CPU of the host, by the time that the kernel says they had."""

from __future__ import annotations

import os
import statistics
import time

from bench.cases import cpu_seconds, tiny_host
from bench.rows import Row
from tests.guest.host import Host, type_line

_WEIGHTS = {"one": 128, "two": 256, "four": 512}
_CAP = 50
_SECONDS, _ROUNDS = 10.0, 3


def sched() -> list[Row]:
    """Three busy domains with weights 1:2:4 on one CPU, then one of them alone with a cap."""
    host = tiny_host()
    cpu = min(os.sched_getaffinity(0))
    try:
        for name, weight in _WEIGHTS.items():
            host.xm("create", "-q", "image=tiny", f"name={name}", "memory=96", f"cpus={cpu}", f"cpu_weight={weight}")
            type_line(host.ready(name), "(while :; do :; done) &")
        rounds = [_used(host) for _ in range(_ROUNDS)]
        shares = {name: statistics.median(each[name] / sum(each.values()) for each in rounds) for name in _WEIGHTS}
        host.xm("destroy", "one")
        host.xm("destroy", "two")
        host.xm("sched-credit", "-d", "four", "-c", str(_CAP), "-w", "65535")
        capped = [_used(host)["four"] / _SECONDS * 100 for _ in range(_ROUNDS)]
    finally:
        host.stop()
    total = sum(_WEIGHTS.values())
    worst = max(abs(shares[name] * total / weight - 1) for name, weight in _WEIGHTS.items())
    return [
        Row(
            "CPU shares of weights 1:2:4 on one CPU",
            " : ".join(f"{shares[name] * 100:.1f}" for name in _WEIGHTS) + " %",
            "",
        ),
        Row("  off by, at most", f"{worst * 100:.1f} %", "< 10 %"),
        Row(f"CPU of a busy domain with a cap of {_CAP}", f"{statistics.median(capped):.1f} %", f"{_CAP} +- 2.5"),
    ]


def _used(host: Host) -> dict[str, float]:
    """CPU seconds of the running ones in so many seconds."""
    pids = {name: domain["pid"] for name, domain in host.domains().items()}
    before, start = {name: cpu_seconds(pid) for name, pid in pids.items()}, time.monotonic()
    time.sleep(_SECONDS)
    after = {name: cpu_seconds(pid) for name, pid in pids.items()}
    scale = _SECONDS / (time.monotonic() - start)
    return {name: (after[name] - before[name]) * scale for name in pids}

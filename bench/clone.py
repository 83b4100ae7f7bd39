"""What clones of a snapshot cost, against guests booted for the purpose in the same run."""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path

from bench.cases import RUNS, tiny_host
from bench.rows import Row, ratio, spread
from tests.guest.host import Host

CLONES = int(os.environ.get("PYXEN_BENCH_CLONES", "50"))
MEMORY_MIB = 256
_PROMPT = b":~# "
_LIMIT_S = 90.0


def clone() -> list[Row]:
    """Seconds to a guest that answers, and memory: clones of one snapshot, and cold boots."""
    host = tiny_host()
    try:
        booted = [_seconds(host, f"cold{number}", f"{number}") for number in range(min(RUNS, 5))]
        full = [_pss_mib(host, f"cold{number}") for number in range(len(booted))]
        host.xm("snapshot", "create", "cold0", "base")
        first = _seconds(host, "clone0", None)
        cloned, beside = [], []
        for number in range(1, CLONES):
            cloned.append(_seconds(host, f"clone{number}", None))
            beside.append(statistics.median(booted))
        shared = sum(_pss_mib(host, f"clone{number}") for number in range(CLONES))
    finally:
        host.stop()
    whole = statistics.mean(full) * CLONES
    return [
        Row("xm create to a prompt", spread(booted), ""),
        Row("xm clone -s to a prompt, the first of a snapshot", f"{first:.3g} s", ""),
        Row("xm clone -s to a prompt, the others", spread(cloned, "ms", 1000), "< 300 ms"),
        Row("  ratio to a boot", ratio(cloned, beside), "< 0.1"),
        Row(f"PSS of a booted guest of {MEMORY_MIB} MiB", spread(full, "MiB"), ""),
        Row(f"PSS of {CLONES} clones and the template", f"{shared + MEMORY_MIB:.0f} MiB", ""),
        Row(f"  ratio to {CLONES} booted ones", f"{(shared + MEMORY_MIB) / whole:.2f}", "< 0.15"),
    ]


def _seconds(host: Host, name: str, cold: str | None) -> float:
    """From the command's start to the guest's prompt; a clone is asked for one by a new line."""
    start = time.perf_counter()
    if cold is not None:
        host.xm("create", "-q", "image=tiny", f"name={name}", f"memory={MEMORY_MIB}")
    else:
        host.xm("clone", "-q", "-s", "base", "cold0", name)
    folder = _newest(host)
    if cold is None:
        fd = os.open(folder / "console.in", os.O_WRONLY | os.O_NONBLOCK)
        os.write(fd, b"\n")
        os.close(fd)
    while _PROMPT not in (folder / "console.log").read_bytes():
        if time.perf_counter() - start > _LIMIT_S:
            raise TimeoutError(f"{name} does not answer")
        time.sleep(0.002)
    return time.perf_counter() - start


def _newest(host: Host) -> Path:
    return max((host.root / "run" / "domains").iterdir(), key=lambda path: int(path.name))


def _pss_mib(host: Host, name: str) -> float:
    pid = host.domains()[name]["pid"]
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no Pss")

"""What clones of a snapshot cost, against guests booted for the purpose in the same run."""

from __future__ import annotations

import json
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
        _seconds(host, "source", cold=True)
        host.xm("snapshot", "create", "source", "base")
        first = _seconds(host, "clone0")
        booted, cloned, full = [], [], []
        for number in range(1, min(RUNS, CLONES)):  # turn and turn about
            _ready(host)  # the next clone is not started while a guest boots
            booted.append(_seconds(host, "cold", cold=True))
            full.append(_pss_mib(host, "cold"))
            host.xm("destroy", "cold")  # it would go on booting in the background
            cloned.append(_seconds(host, f"clone{number}"))
        many = [_seconds(host, f"clone{number}") for number in range(len(cloned) + 1, CLONES)]
        _ready(host)
        template = _template_mib(host)
        running = {domain["pid"] for domain in host.domains().values()}
        waiting = sum(map(_pss, _monitors(host) - running))
        shared = sum(_pss_mib(host, f"clone{number}") for number in range(CLONES)) + template + waiting
    finally:
        host.stop()
    whole = statistics.mean(full) * CLONES
    return [
        Row("xm create to a prompt", spread(booted), ""),
        Row("xm clone -s to a prompt, the first of a snapshot", f"{first:.3g} s", ""),
        Row("xm clone -s to a prompt, in turn with the boots", spread(cloned, "ms", 1000), "< 300 ms"),
        Row("  ratio to a boot", ratio(cloned, booted), "< 0.1"),
        *(
            [Row(f"xm clone -s to a prompt, one after the other, up to {CLONES} clones", spread(many, "ms", 1000), "")]
            if many
            else []
        ),
        Row(f"PSS of a booted guest of {MEMORY_MIB} MiB", spread(full, "MiB"), ""),
        Row("the template alone", f"{template:.0f} MiB", ""),
        Row("PSS of what waits for the next clone", f"{waiting:.0f} MiB", ""),
        Row(f"PSS of {CLONES} clones, the template and what waits", f"{shared:.0f} MiB", ""),
        Row(f"  ratio to {CLONES} booted ones", f"{shared / whole:.2f}", "< 0.15"),
    ]


def _seconds(host: Host, name: str, *, cold: bool = False) -> float:
    """From the command's start to the guest's prompt; a clone is asked for one by a new line."""
    start = time.perf_counter()
    if cold:
        said = host.xm("create", "image=tiny", f"name={name}", f"memory={MEMORY_MIB}")
    else:
        said = host.xm("clone", "-s", "base", "source", name)
    folder = host.root / "run" / "domains" / said.rpartition("(id=")[2].rstrip(")\n")
    if not cold:
        fd = os.open(folder / "console.in", os.O_WRONLY | os.O_NONBLOCK)
        os.write(fd, b"\n")
        os.close(fd)
    while _PROMPT not in (folder / "console.log").read_bytes():
        if time.perf_counter() - start > _LIMIT_S:
            raise TimeoutError(f"{name} does not answer")
        time.sleep(0.002)
    return time.perf_counter() - start


def _template_mib(host: Host) -> float:
    """What the file that clones map takes of the host's memory; each clone's PSS has its part of it once more."""
    files = (path for path in Path(f"/proc/{host.pid}/fd").iterdir() if "/memfd:guest" in str(path.readlink()))
    return sum(path.stat().st_blocks * 512 for path in files) / (1 << 20)


def _ready(host: Host) -> None:
    """Wait until something waits for the next clone."""
    deadline = time.perf_counter() + _LIMIT_S
    while not json.loads(host.xm("info", "--format", "json"))["clones_waiting"]:
        if time.perf_counter() > deadline:
            raise TimeoutError("nothing waits for the next clone")
        time.sleep(0.1)


def _monitors(host: Host) -> set[int]:
    """The processes of all domains, and of those that wait to be one."""
    return {int((folder / "pid").read_text()) for folder in (host.root / "run" / "domains").iterdir()}


def _pss_mib(host: Host, name: str) -> float:
    return _pss(host.domains()[name]["pid"])


def _pss(pid: int) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no Pss")

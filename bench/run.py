"""What ``xm run`` costs, against a guest that is only booted, with files of its own, in the same run."""

from __future__ import annotations

import time

from bench.cases import RUNS, tiny_host
from bench.rows import Row, ratio, spread
from tests.guest.host import Host


def run() -> list[Row]:
    """Seconds of ``xm run -- true`` and ``xm run -- python3``, and of a boot whose agent runs ``true``."""
    host = tiny_host()
    words = {"true": ["true"], "python": ["/usr/bin/python3", "-c", ""]}
    times: dict[str, list[float]] = {name: [] for name in (*words, "booted")}
    try:
        host.xm("run", "--", "true", timeout=600)  # fetches the kernel
        for _ in range(RUNS):  # turn and turn about
            for name, command in words.items():
                times[name].append(_seconds(host, "run", "--", *command))
            times["booted"].append(_booted(host))
    finally:
        host.stop()
    return [
        Row("xm run -- true", spread(times["true"]), "< 5 s"),
        Row("xm run -- python3 -c ''", spread(times["python"]), ""),
        Row("xm create, xm exec true, xm destroy of the image tiny", spread(times["booted"]), ""),
        Row("  ratio", ratio(times["true"], times["booted"]), ""),
    ]


def _seconds(host: Host, *words: str) -> float:
    start = time.perf_counter()
    host.xm(*words)
    return time.perf_counter() - start


def _booted(host: Host) -> float:
    create = _seconds(host, "create", "-q", "image=tiny", "name=plain", "memory=512", "engine=qemu")
    return create + _seconds(host, "exec", "--wait", "60", "plain", "true") + _seconds(host, "destroy", "plain")

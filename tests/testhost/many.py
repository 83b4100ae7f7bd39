"""Runs in the test host: eight domains together, some of them hostile; what became of them is reported as JSON.

One program with the SDK, where eight times xm would spend minutes on starting Python.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from pyxen.client import Client
from pyxen.config.model import Action, Disk, DiskFormat, DomainConfig, EngineChoice
from pyxen.errors import PyxenError

_RUN = Path("/run/xend/domains")
_PATIENCE_S = 600.0
_LINUX = {"linux1": "console=hvc0", "linux2": "console=hvc0 clocksource=tsc tsc=reliable"}
_LOOP = "cat /sys/devices/system/clocksource/clocksource0/current_clocksource; while :; do md5sum /bin/busybox; done\n"


def main() -> None:
    subprocess.run([sys.executable, "-m", "pyxen.xend", "start"], check=True, stdout=sys.stderr)
    Path("/disk.img").write_bytes(bytes(1 << 20))
    domids: dict[str, int] = {}
    with Client() as client:

        def create(name: str, kernel: str, **more: object) -> None:
            config = DomainConfig(name=name, kernel=kernel, engine=EngineChoice.XEN, **{"memory": 16, **more})  # type: ignore[arg-type]
            print(f"{name} at second {Path('/proc/uptime').read_text().split('.')[0]}", file=sys.stderr)
            domids[name] = client.create(config).domid or 0

        for name, cmdline in _LINUX.items():
            create(name, "/vmlinux", ramdisk="/ramdisk", cmdline=cmdline, memory=160)
            # One at a time: a kernel that boots leaves the next one's process little time to start.
            _wait(partial(_has_prompt, domids[name]), f"{name} comes to no prompt")
        disk = Disk(vdev="xvda", target="/disk.img", format=DiskFormat.RAW)
        for number in range(1, 5):
            create(f"counter{number}", "/counter")
        create("crasher", "/crasher", on_crash=Action.RESTART)
        _wait(lambda: "too fast" in client.log(), "the domain that crashes is started again and again")
        create("hostile", "/hostile", disk=[disk])
        for name in _LINUX:
            _type(domids[name], _LOOP)
        client.destroy("counter3")
        before = {name: _printed(domid) for name, domid in domids.items()}
        time.sleep(8)
        logs = {name: _log(domid) for name, domid in domids.items()}
        found = {
            "before": before,
            "after": {name: len(log) for name, log in logs.items()},
            "domains": sorted(domain.name for domain in client.domains()),
            "log": client.log(),
            "logs": {name: logs[name] for name in (*_LINUX, "counter1")},
            "stderr": "".join(path.read_text() for path in _RUN.glob("*/stderr")),
        }
    with open(1, "wb", closefd=False) as out:
        out.write(json.dumps(found).encode())


def _wait(condition: Callable[[], bool], failure: str) -> None:
    end = time.monotonic() + _PATIENCE_S
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(failure)
        time.sleep(0.5)


def _type(domid: int, text: str) -> None:
    fifo = os.open(_RUN / str(domid) / "console.in", os.O_WRONLY)
    os.write(fifo, text.encode())
    os.close(fifo)


def _log(domid: int) -> str:
    path = _RUN / str(domid) / "console.log"
    return path.read_text(errors="replace") if path.exists() else ""


def _has_prompt(domid: int) -> bool:
    return "~# " in _log(domid)


def _printed(domid: int) -> int:
    return len(_log(domid))


if __name__ == "__main__":
    try:
        main()
    except PyxenError as error:
        sys.exit(f"Error: {error}")

"""Runs in the test host: one domain, its console typed into by a script, its end reported as JSON.

``python -m tests.testhost.guest '{"config": {…}, "type": [["prompt", "line"], …]}'`` boots /vmlinux and /ramdisk.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import msgspec

_DOMID = 7
_HERE = Path("/run/domains/7")
_GIVE_UP_S = 800


def main() -> None:
    order: dict[str, Any] = json.loads(sys.argv[1])
    _HERE.mkdir(parents=True)
    spec = {
        "domid": _DOMID,
        "uuid": str(uuid.UUID(int=_DOMID)),
        "config": {"name": "inner", "memory": 192, **order.get("config", {})},
        "kernel": "/vmlinux",
        "ramdisk": "/ramdisk",
        "cmdline": order.get("cmdline", "console=hvc0 quiet"),
    }
    for disk in spec["config"].get("disk", ()):
        Path(disk["target"]).touch()
        os.truncate(disk["target"], 64 << 20)
    (_HERE / "domain.json").write_bytes(msgspec.json.encode(spec))
    with (_HERE / "stderr").open("wb") as stderr:
        domain = subprocess.Popen(
            [sys.executable, "-m", "pyxen.hypervisor", f"{_HERE}/monitor"], stdout=stderr, stderr=stderr
        )
    for prompt, line in order.get("type", ()):
        _wait(domain, prompt)
        if not (_HERE / "console.in").exists():  # it never began; "stderr" says why
            break
        fifo = os.open(_HERE / "console.in", os.O_WRONLY)
        os.write(fifo, f"{line}\n".encode())
        os.close(fifo)
    _wait(domain, None)
    if domain.poll() is None:
        domain.send_signal(signal.SIGTERM)
    status = domain.wait(30)
    found = {
        "console": _text("console.log"),
        "events": [json.loads(line) for line in _text("events").splitlines()],
        "stderr": _text("stderr"),
        "status": status,
    }
    # The port takes 32 KiB at a time, and Python's unbuffered streams forget what a write leaves over.
    with open(1, "wb", closefd=False) as out:
        out.write(json.dumps(found).encode())


def _wait(domain: subprocess.Popen[bytes], prompt: str | None) -> None:
    """Until the console's last words are ``prompt`` (None: never), or the guest has stopped."""
    end = time.monotonic() + _GIVE_UP_S
    while domain.poll() is None and time.monotonic() < end:
        if '"SHUTDOWN"' in _text("events") or '"GUEST_PANICKED"' in _text("events"):
            return
        if prompt is not None and _text("console.log").rstrip("\r\n").endswith(prompt):
            return
        time.sleep(0.05)


def _text(name: str) -> str:
    path = _HERE / name
    return path.read_text(errors="replace") if path.exists() else ""


if __name__ == "__main__":
    main()

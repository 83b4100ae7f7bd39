"""Runs in the test host: a guest that works on its disk is saved and restored, again and again.

``python -m tests.testhost.saved CYCLES`` reports on each round as JSON. One program with the SDK, where xm would spend
most of the time on starting Python.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pyxen.client import Client
from pyxen.config.model import Disk, DiskAccess, DiskFormat, DomainConfig, EngineChoice
from pyxen.errors import PyxenError

_RUN = Path("/run/xend/domains")
_PATIENCE_S = 400.0
_NAME = "inner"
_LONGER_THAN_WATCHDOGS_S = 40
"""Linux takes a CPU for stuck after some 20 seconds."""
_FLAG_AT = 8 << 20
_SCRIPT = """
# In the guest: from a disk, for a console takes long lines slowly.
begin() {
  dd if=/dev/urandom of=/run/data bs=64k count=32 2>/dev/null
  dd if=/run/data of=/dev/xvda bs=64k conv=fsync 2>/dev/null
  (while :; do echo $((n += 1)) >/run/count; sleep 1; done) &
}
check() { # word, Unix time
  echo 3 >/proc/sys/vm/drop_caches
  before=$(cat /run/count); sleep 2
  echo "$1" | dd of=/dev/xvda bs=512 seek=16384 conv=fsync 2>/dev/null; wrote=$?
  for cpu in 0 1; do taskset $((1 << cpu)) true || wrote="cpu $cpu"; done
  echo "$1: disk $(head -c 2097152 /dev/xvda | sha256sum)"
  echo "$1: memory $(sha256sum </run/data)"
  echo "$1: cpus $(cat /sys/devices/system/cpu/online)"
  echo "$1: count $before $(cat /run/count)"
  echo "$1: date $(($(date +%s) - $2))"
  echo "$1: uptime $(cut -d. -f1 /proc/uptime)"
  echo "$1: results $wrote"
  # Linux 6.1 complains of its second console when it is restored.
  dmesg | grep -E 'WARN|BUG|I/O error|blk_update|soft lockup| stall' | grep -v evtchn_put | sed "s/^/$1: complaint /"
  echo "$1-done"
}
"""


def main() -> None:
    cycles = int(sys.argv[1])
    subprocess.run([sys.executable, "-m", "pyxen.xend", "start"], check=True, stdout=sys.stderr)
    Path("/script").write_bytes(_SCRIPT.encode().ljust(64 << 10, b"\n"))
    Path("/disk.img").touch()
    os.truncate("/disk.img", 16 << 20)
    config = DomainConfig(
        name=_NAME,
        engine=EngineChoice.XEN,
        kernel="/vmlinux",
        ramdisk="/ramdisk",
        cmdline="quiet",
        memory=160,
        vcpus=2,
        maxvcpus=3,
        disk=(
            Disk(vdev="xvda", target="/disk.img", format=DiskFormat.RAW),
            Disk(vdev="xvdb", target="/script", format=DiskFormat.RAW, access=DiskAccess.READ),
        ),
    )
    rounds: dict[str, dict[str, str]] = {}
    seconds: list[list[float]] = []
    with Client() as client:
        domid = client.create(config).domid or 0
        _wait(lambda: "~# " in _log(domid), "there is no prompt")
        _type(domid, ". /dev/xvdb; begin; echo begun-$?\n")
        _wait(lambda: "\nbegun-0" in _log(domid), "the guest's work does not begin")
        rounds["first"] = _check(domid, "first")
        client.pause(_NAME)
        time.sleep(_LONGER_THAN_WATCHDOGS_S)
        client.unpause(_NAME)
        rounds["paused"] = _check(domid, "paused")
        for cycle in range(cycles):
            began = time.monotonic()
            client.save(_NAME, "/state")
            saved = time.monotonic()
            if any(domain.name == _NAME for domain in client.domains()):
                raise SystemExit("the domain is still there")
            domid = client.restore("/state").domid or 0
            seconds.append([saved - began, time.monotonic() - saved])
            rounds[f"cycle{cycle}"] = _check(domid, f"cycle{cycle}")
        client.save(_NAME, "/checkpoint", checkpoint=True)
        rounds["goes-on"] = _check(domid, "goes-on")
        client.destroy(_NAME)
        domid = client.restore("/checkpoint").domid or 0
        rounds["again"] = _check(domid, "again")
        _type(domid, "dmesg | tail -n 20; poweroff\n")
        _wait(lambda: "reason=poweroff" in client.log(), "the guest does not power off")
        log = client.log()
    found = {"rounds": rounds, "seconds": seconds, "domid": domid, "log": log}
    with open(1, "wb", closefd=False) as out:
        out.write(json.dumps(found).encode())


def _check(domid: int, word: str) -> dict[str, str]:
    """What the guest says of itself, and what the host finds in the disk's file."""
    print(f"{word} at second {Path('/proc/uptime').read_text().split('.')[0]}", file=sys.stderr, flush=True)
    # A guest that has just been restored takes a while to listen; what is typed meanwhile may be lost.
    until = len(_log(domid))
    _wait(lambda: _answers(domid, until), f"there is no prompt in round {word}")
    _type(domid, f"check {word} {int(time.time())}\n")
    _wait(lambda: f"\n{word}-done" in _log(domid), f"the guest says nothing in round {word}")
    told = dict(re.findall(rf"^{word}: (\w+) (.*)$", _log(domid), re.MULTILINE))
    told["complaints"] = "\n".join(re.findall(rf"^{word}: complaint (.*)$", _log(domid), re.MULTILINE))
    with Path("/disk.img").open("rb") as file:
        file.seek(_FLAG_AT)
        told["host"] = file.read(512).split(b"\n")[0].decode()
    return told


def _answers(domid: int, start: int) -> bool:
    """Press Enter; is there a new prompt after a while?"""
    _type(domid, "\n")
    time.sleep(3)
    return "~# " in _log(domid)[start:]


def _wait(condition: Callable[[], bool], failure: str) -> None:
    end = time.monotonic() + _PATIENCE_S
    while not condition():
        if time.monotonic() > end:
            logs = [path.read_text(errors="replace")[-3000:] for path in _RUN.glob("*/[cs]*[gr]") if path.is_file()]
            raise SystemExit("\n".join([failure, *logs]))
        time.sleep(0.2)


def _type(domid: int, text: str) -> None:
    fifo = os.open(_RUN / str(domid) / "console.in", os.O_WRONLY)
    os.write(fifo, text.encode())
    os.close(fifo)


def _log(domid: int) -> str:
    path = _RUN / str(domid) / "console.log"
    return path.read_text(errors="replace").replace("\r", "") if path.exists() else ""


if __name__ == "__main__":
    try:
        main()
    except PyxenError as error:
        sys.exit(f"Error: {error}\n{Path('/var/lib/xend/xend.log').read_text()}")

"""Live migration between two xends of this machine, against QEMU's own ``migrate`` by hand with the same guest."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qemu.qmp import QMPClient

from bench.rows import Row, ratio, spread
from pyxen.api import Image
from pyxen.image.kernel import unpack
from pyxen.image.store import ImageStore
from tests.guest.host import CACHE, free_port, wait_for
from tests.guest.pair import migrate as through_xm
from tests.guest.pair import pair

RUNS = int(os.environ.get("PYXEN_BENCH_RUNS", "9"))
_MEMORY = 192


def migration() -> list[Row]:
    """Turn and turn about: one of ours, one by hand."""
    store = ImageStore(CACHE / "images", CACHE / "kernels")
    image = store.build("tiny", {}, force=False, progress=lambda step: None)
    ours: list[dict[str, float]] = []
    theirs: list[dict[str, float]] = []
    with pair() as (one, other), tempfile.TemporaryDirectory(prefix="pyxen-bench-") as folder:
        one.xm("create", "image=tiny", "name=web", f"memory={_MEMORY}")
        one.ready("web").close()
        source, to = one, other
        for number in range(RUNS):
            ours.append(json.loads(through_xm(source, to, "--format", "json")))
            source, to = to, source
            theirs.append(asyncio.run(by_hand(image, Path(folder) / str(number))))
    total = [each["total_s"] for each in ours], [each["total_s"] for each in theirs]
    down = [each["downtime_s"] for each in ours], [each["downtime_s"] for each in theirs]
    return [
        Row("xm migrate --live, in all", spread(total[0], "ms", 1000), ""),
        Row("QEMU's migrate, in all (no checks, no TLS, both running)", spread(total[1], "ms", 1000), ""),
        Row("  ratio", ratio(*total), ""),
        Row("xm migrate --live, the guest stands still", spread(down[0], "ms", 1000), ""),
        Row("QEMU's migrate, the guest stands still, from stop to go", spread(down[1], "ms", 1000), ""),
        Row("  ratio", ratio(*down), ""),
        Row("  what QEMU says of that itself", spread([each["said_s"] for each in theirs], "ms", 1000), ""),
    ]


async def by_hand(image: Image, folder: Path) -> dict[str, float]:
    """Boot the guest, start a QEMU that waits for it, and have the one send it to the other over TCP."""
    folder.mkdir()
    port = free_port()
    running = _start(image, folder, "a")
    waiting = _start(image, folder, "b", "-incoming", f"tcp:127.0.0.1:{port}")
    try:
        await asyncio.to_thread(wait_for, lambda: _is_up(folder / "a.log"), "the guest is up", 90)
        source, to = QMPClient(), QMPClient()
        await source.connect(str(folder / "a.qmp"))
        await to.connect(str(folder / "b.qmp"))
        await source.execute("migrate-set-parameters", {"max-bandwidth": 1 << 50})
        began = time.perf_counter()
        await source.execute("migrate", {"uri": f"tcp:127.0.0.1:{port}"})
        found: Any = {}
        while found.get("status") not in ("completed", "failed"):
            await asyncio.sleep(0.01)
            found = await source.execute("query-migrate")
        arrived: Any = {"running": False}
        while not arrived["running"]:
            await asyncio.sleep(0.001)  # QEMU says so only to those who ask
            arrived = await to.execute("query-status")
        total = time.perf_counter() - began
        assert found["status"] == "completed", found
        still = _when(to, "RESUME") - _when(source, "STOP")
        await source.disconnect()
        await to.disconnect()
        return {"total_s": total, "downtime_s": still, "said_s": found["downtime"] / 1000}
    finally:
        for process in (running, waiting):
            process.kill()
            process.wait()


def _when(monitor: QMPClient, name: str) -> float:
    """When the last event of this name was, in seconds since 1970."""
    stamps: list[Any] = [event["timestamp"] for event in monitor.events.clear() if event["event"] == name]
    return float(stamps[-1]["seconds"] + stamps[-1]["microseconds"] / 1e6)


def _is_up(log: Path) -> bool:
    return log.exists() and b"# " in log.read_bytes()


def _start(image: Image, folder: Path, name: str, *more: str) -> subprocess.Popen[bytes]:
    assert image.ramdisk is not None
    return subprocess.Popen(
        [
            "qemu-system-x86_64",
            *("-nodefaults", "-no-user-config", "-display", "none"),
            *("-machine", "pc,usb=off,vmport=off,hpet=off,smm=off,graphics=off", "-accel", "tcg", "-cpu", "max"),
            *("-m", str(_MEMORY), "-bios", "/usr/share/qemu/qboot.rom"),
            *("-kernel", str(unpack(Path(image.kernel), CACHE / "kernels").vmlinux), "-initrd", image.ramdisk),
            *("-append", f"{image.cmdline} console=ttyS0 no_timer_check"),
            *("-serial", f"file:{folder}/{name}.log"),
            *(_devices()),
            *("-qmp", f"unix:{folder}/{name}.qmp,server=on,wait=off"),
            *more,
        ],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _devices() -> Sequence[str]:
    """What ours has as well."""
    return ("-device", "virtio-balloon-pci", "-device", "pvpanic", "-device", "virtio-rng-pci")

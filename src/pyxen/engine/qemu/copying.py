"""Copies of a running guest's disks on another host: QEMU's mirror here writes to QEMU's NBD server there.

Both ends are sockets in the domains' folders; what lies between them is xend's business. QMP reference: block-core,
block-export, job.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pyxen.engine.contract import COPIES, copy_socket
from pyxen.engine.qemu.qmp import Session, session
from pyxen.errors import Conflict, EngineError, PyxenError

_PREFIX = "copy-"
_LOOK_S = 0.2
_SETTLE_S = 60.0


async def serve(directory: Path, vdevs: Iterable[str]) -> None:
    """Have a QEMU that waits for its guest let these disks be written to. Raises PyxenError."""
    async with session(directory) as monitor:
        await monitor.execute("nbd-server-start", {"addr": {"type": "unix", "data": {"path": COPIES}}})
        for vdev in vdevs:
            export = {"type": "nbd", "id": _PREFIX + vdev, "node-name": f"{vdev}.0", "name": vdev, "writable": True}
            await monitor.execute("block-export-add", export)


async def stop_serving(directory: Path) -> None:
    """The disks are the guest's alone from now on. Raises PyxenError."""
    async with session(directory) as monitor:
        await monitor.execute("nbd-server-stop")


async def begin(directory: Path, vdev: str, bandwidth: int | None) -> None:
    """Begin to copy a disk to what listens at its socket. Raises PyxenError, Conflict if its guest must run first."""
    name = _PREFIX + vdev
    target = {
        "driver": "nbd",
        "node-name": name,
        "server": {"type": "unix", "path": copy_socket(vdev)},
        "export": vdev,
        "discard": "unmap",
        "detect-zeroes": "unmap",
    }
    mirror = {
        "job-id": name,
        "device": f"{vdev}.0",
        "target": name,
        "sync": "full",
        "auto-dismiss": False,  # what became of it can be asked
        "speed": bandwidth or 0,
    }
    async with session(directory) as monitor:
        if (await monitor.execute("query-status"))["status"] == "postmigrate":
            # QEMU (7.2) opens them again when the guest goes on, and hangs in the next migration if they are copied.
            raise Conflict(
                "it is paused, and an earlier migration that failed has closed its disks",
                hint="xm unpause opens them again; then it can be sent.",
            )
        await monitor.execute("blockdev-add", target)
        await monitor.execute("blockdev-mirror", mirror)


async def progress(directory: Path) -> tuple[int, int, bool]:
    """Bytes written, bytes in all, and whether every copy has become what its disk is. Raises EngineError."""
    async with session(directory) as monitor:
        jobs = await _jobs(monitor)
    for job in jobs:
        _check(job)
    done = sum(job["current-progress"] for job in jobs)
    whole = sum(job["total-progress"] for job in jobs)
    return done, whole, all(job["status"] == "ready" for job in jobs)


async def finish(monitor: Session) -> None:
    """Let go of the copies when the guest stands still: they are the same then. Raises EngineError if one is not."""
    for job in await _jobs(monitor):
        _check(job)
        # Of a mirror that is ready this is its end, after all has been written.
        await monitor.execute("block-job-cancel", {"device": job["id"]})
    for job in await _concluded(monitor):
        if "error" in job:
            raise _failed(job)
    await _clean(monitor)


async def abandon(directory: Path) -> None:
    """End all copying, whatever becomes of the copies. Raises PyxenError."""
    async with session(directory, timeout_s=_SETTLE_S) as monitor:
        for job in await _jobs(monitor):
            with contextlib.suppress(EngineError):  # it has ended just now
                await monitor.execute("block-job-cancel", {"device": job["id"], "force": True})
        await _concluded(monitor)
        await _clean(monitor)


async def _clean(monitor: Session) -> None:
    for job in await _jobs(monitor):
        await monitor.execute("job-dismiss", {"id": job["id"]})
    for node in await monitor.execute("query-named-block-nodes", {"flat": True}):
        if str(node["node-name"]).startswith(_PREFIX):
            with contextlib.suppress(PyxenError):
                await monitor.execute("blockdev-del", {"node-name": node["node-name"]})


async def _concluded(monitor: Session) -> list[dict[str, Any]]:
    """Wait until all jobs have ended; what became of them."""
    while True:
        jobs = await _jobs(monitor)
        if all(job["status"] == "concluded" for job in jobs):
            return jobs
        await monitor.event("JOB_STATUS_CHANGE", timeout_s=_LOOK_S)


async def _jobs(monitor: Session) -> list[dict[str, Any]]:
    return [job for job in await monitor.execute("query-jobs") if str(job["id"]).startswith(_PREFIX)]


def _check(job: dict[str, Any]) -> None:
    if job["status"] not in ("created", "running", "ready", "paused", "standby"):
        raise _failed(job)


def _failed(job: dict[str, Any]) -> EngineError:
    disk = str(job["id"]).removeprefix(_PREFIX)
    return EngineError(f"disk {disk} can't be copied: {job.get('error', 'QEMU does not say why')}")

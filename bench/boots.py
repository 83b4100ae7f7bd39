"""Does every boot get there? ``python -m bench.boots [N] [AT_ONCE]`` boots the image tiny N times on the QEMU engine
and counts those that did not power themselves off in time.
"""

from __future__ import annotations

import asyncio
import base64
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from pyxen.api import ShutdownReason
from pyxen.config.model import DomainConfig
from pyxen.engine.contract import DomainSpec, Stopped
from pyxen.engine.inotify import Inotify
from pyxen.engine.qemu import QemuEngine
from pyxen.image.kernel import unpack
from pyxen.image.store import ImageStore

CACHE = Path(__file__).resolve().parents[1] / "build" / "guest-cache"
BOUND_S = 60.0
FIRST_UID = 400_000


async def boot(engine: QemuEngine, spec: DomainSpec, directory: Path) -> tuple[float, Stopped | None, str]:
    """Seconds from the start to the guest's power-off, why it stopped (None: not in time), the end of its output."""
    directory.mkdir(mode=0o700)
    for name in ("console.log", "events"):
        (directory / name).touch(mode=0o600)
    os.mkfifo(directory / "console.in", 0o600)
    began = time.monotonic()
    domain = await engine.start(spec, directory, paused=False)
    future: asyncio.Future[Stopped] = asyncio.get_running_loop().create_future()
    domain.on_stopped(lambda stopped: None if future.done() else future.set_result(stopped))
    try:
        stopped: Stopped | None = await asyncio.wait_for(future, BOUND_S)
    except TimeoutError:
        stopped = None
    elapsed = time.monotonic() - began
    await domain.destroy()
    domain.close()
    output = (directory / "console.log").read_bytes()[-500:].decode(errors="replace")
    shutil.rmtree(directory)
    return elapsed, stopped, output


async def trial(count: int, at_once: int, root: Path) -> int:
    """Boot ``count`` domains, ``at_once`` of them at a time; returns how many failed."""
    store = ImageStore(CACHE / "images", CACHE / "kernels")
    image = await asyncio.to_thread(store.build, "tiny", {}, force=False, progress=lambda step: None)
    kernel = unpack(Path(image.kernel), CACHE / "kernels").vmlinux
    script = base64.b64encode(b"/sbin/poweroff").decode()
    inotify = Inotify()
    engine = QemuEngine(root / "state", inotify)
    times: list[float] = []
    failures: list[str] = []
    numbers = iter(range(1, count + 1))

    async def worker() -> None:
        for number in numbers:
            spec = DomainSpec(
                domid=number,
                uuid=f"00000000-0000-0000-0000-{number:012}",
                config=DomainConfig(name=f"boot{number}", memory=192),
                kernel=str(kernel),
                ramdisk=image.ramdisk,
                cmdline=f"{image.cmdline} tiny.run={script}",
                uid=FIRST_UID + number if os.geteuid() == 0 else None,
            )
            elapsed, stopped, output = await boot(engine, spec, root / str(number))
            if stopped is not None and stopped.reason is ShutdownReason.POWEROFF:
                times.append(elapsed)
            else:
                failures.append(f"boot {number}: {stopped or 'no end'} after {elapsed:.1f} s\n{output}")

    await asyncio.gather(*(worker() for _ in range(at_once)))
    inotify.close()
    for failure in failures:
        print(failure)
    print(f"{count} boots, {at_once} at a time: {len(failures)} failed")
    if times:
        print(f"seconds: median {statistics.median(times):.2f}, least {min(times):.2f}, most {max(times):.2f}")
    return len(failures)


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    at_once = int(sys.argv[2]) if len(sys.argv) > 2 else 2
    root = Path(tempfile.mkdtemp(prefix="pyxen-boots-", dir="/tmp"))
    root.chmod(0o711)
    try:
        sys.exit(1 if asyncio.run(trial(count, at_once, root)) else 0)
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()

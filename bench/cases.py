"""The benchmarks: each returns rows of what was seen and what is aimed at."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bench.rows import Row, ratio, spread
from pyxen.image.store import ImageStore
from tests.guest.host import CACHE, Host

RUNS = int(os.environ.get("PYXEN_BENCH_RUNS", "9"))
FIRST_LINE = b"tiny: ready"


def timed(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def tiny_host() -> Host:
    ImageStore(CACHE / "images", CACHE / "kernels").build("tiny", {}, force=False, progress=lambda step: None)
    host = Host()
    host.start()
    return host


def startup() -> list[Row]:
    """``xm list`` as a process, against an interpreter that imports what any HTTP client must."""
    host = tiny_host()
    try:
        ours, theirs = [], []
        for _ in range(RUNS * 2):
            ours.append(timed(lambda: host.xm("list")))
            theirs.append(timed(lambda: subprocess.run([sys.executable, "-c", "import http.client, json"], check=True)))
    finally:
        host.stop()
    return [
        Row("xm list, a process", spread(ours, "ms", 1000), ""),
        Row("python -c 'import http.client, json'", spread(theirs, "ms", 1000), ""),
        Row("  ratio", ratio(ours, theirs), "< 3"),
    ]


def until_line(arguments: list[str]) -> float:
    """Seconds from starting QEMU to the guest's first user-space line on its standard output."""
    start = time.perf_counter()
    process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    seen = b""
    try:
        while FIRST_LINE not in seen:
            data = os.read(process.stdout.fileno(), 65536)
            if not data:
                raise RuntimeError(f"{arguments[0]} ended before the guest's first line: {seen[-500:]!r}")
            seen += data
        return time.perf_counter() - start
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def create_until_line(host: Host) -> float:
    """Seconds from starting ``xm create`` to the first line in the domain's console file."""
    log = host.root / "run" / "domains"
    before = set(log.iterdir())
    start = time.perf_counter()
    process = host.popen("xm", "create", "-q", "image=tiny", "name=bench", "memory=256")
    try:
        while True:
            fresh = set(log.iterdir()) - before
            if fresh and FIRST_LINE in (next(iter(fresh)) / "console.log").read_bytes():
                return time.perf_counter() - start
            if time.perf_counter() - start > 60:
                raise RuntimeError("no first line within 60 s")
            time.sleep(0.002)
    except FileNotFoundError:
        raise RuntimeError("the domain went away before its first line") from None
    finally:
        process.communicate()
        host.xm("destroy", "bench")


def create() -> list[Row]:
    """``xm create`` to the guest's first line, against QEMU by hand: as one would type it, and tuned."""
    host = tiny_host()
    image = ImageStore(CACHE / "images", CACHE / "kernels").get("tiny")
    from pyxen.image.kernel import unpack

    vmlinux = unpack(Path(image.kernel), CACHE / "kernels").vmlinux
    assert image.ramdisk is not None
    plain = ["qemu-system-x86_64", "-nographic", "-m", "256", "-kernel", image.kernel, "-initrd", image.ramdisk,
             "-append", "console=ttyS0"]  # fmt: skip
    tuned = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-machine", "pc",
             "-cpu", "max", "-bios", "qboot.rom", "-m", "256", "-kernel", str(vmlinux), "-initrd", image.ramdisk,
             "-serial", "stdio",
             "-device", "pvpanic", "-device", "virtio-rng-pci",
             "-append", f"console=ttyS0 {image.cmdline}"]  # fmt: skip
    try:
        ours, default, best = [], [], []
        for _ in range(RUNS):
            ours.append(create_until_line(host))
            default.append(until_line(plain))
            best.append(until_line(tuned))
    finally:
        host.stop()
    return [
        Row("xm create to the guest's first line", spread(ours), ""),
        Row("qemu-system-x86_64, as typed", spread(default), ""),
        Row("  ratio", ratio(ours, default), "< 0.5"),
        Row("qemu-system-x86_64, tuned by hand, same devices", spread(best), ""),
        Row("  ratio", ratio(ours, best), "< 1.1"),
    ]


def memory_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"process {pid} has no VmRSS")


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def requests_per_second(path: Path, seconds: float = 3.0) -> float:
    """GET /v1/domains on one connection, as often as it goes."""

    class Connection(http.client.HTTPConnection):
        def connect(self) -> None:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.connect(str(path))

    connection = Connection("localhost")
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        connection.request("GET", "/v1/domains")
        response = connection.getresponse()
        body = response.read()
        assert response.status == 200, body
        count += 1
    connection.close()
    return count / (time.perf_counter() - start)


def daemon() -> list[Row]:
    """xend with twenty idle domains: memory, CPU, requests."""
    host = tiny_host()
    try:
        for number in range(20):
            host.xm("create", "-q", "image=tiny", f"name=n{number}", "memory=128")
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and any(
            FIRST_LINE not in (path / "console.log").read_bytes() for path in (host.root / "run/domains").iterdir()
        ):
            time.sleep(0.5)
        time.sleep(5)
        before = cpu_seconds(host.pid)
        time.sleep(20)
        idle = (cpu_seconds(host.pid) - before) / 20 * 100
        memory = memory_mib(host.pid)
        rate = requests_per_second(host.root / "run" / "xend.sock")
    finally:
        host.stop()
    return [
        Row("xend's resident memory, 20 domains", f"{memory:.0f} MB", "< 80 MB"),
        Row("xend's CPU, 20 idle domains, over 20 s", f"{idle:.2f} %", "< 1 %"),
        Row("GET /v1/domains with 20 domains, one connection", f"{rate:.0f} /s", ""),
    ]


CASES: dict[str, Callable[[], list[Row]]] = {"startup": startup, "create": create, "daemon": daemon}

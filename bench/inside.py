"""Runs in the test host, for bench.testhost: ``python -m bench.inside CASE…``; a line of JSON for each figure.

The two engines take turns. /vmlinux, /ramdisk and /ramdisk-python (with Python in it) are the guest's.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

_MEMORY_MIB: Final = 256
_FIRST_LINE: Final = b"tiny: ready"
_GIVE_UP_S: Final = 120
_XM: Final = [sys.executable, "-m", "pyxen.xm"]
_QEMU: Final = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none",
                "-machine", "pc,usb=off,vmport=off,hpet=off,smm=off,graphics=off", "-accel", "kvm", "-cpu", "host",
                "-bios", "/usr/share/qemu/qboot.rom", "-m", str(_MEMORY_MIB), "-kernel", "/vmlinux"]  # fmt: skip
_WORDS: Final = "quiet cryptomgr.notests initcall_blacklist=crypto_kdf108_init noreplace-smp"
_HOST, _GUEST, _PORT = "10.9.0.1", "10.9.0.2", 5001
_MAC: Final = "00:16:3e:00:00:01"
_TUNSETIFF, _TAP_FLAGS = 0x400454CA, 0x0002 | 0x1000 | 0x4000


def main() -> None:
    for case in sys.argv[1:]:
        CASES[case]()


def _say(figure: str, engine: str, value: float) -> None:
    print(json.dumps({"figure": figure, "engine": engine, "value": value}), flush=True)


def _until(what: str, found: Callable[[], bool]) -> None:
    end = time.monotonic() + _GIVE_UP_S
    while not found():
        if time.monotonic() > end:
            raise RuntimeError(f"{what}: not within {_GIVE_UP_S} s")
        time.sleep(0.005)


# Start and memory, through xm


def start() -> None:
    """``xm create`` to the guest's first line, and what the domain's process then has beside the guest's memory."""
    subprocess.run([sys.executable, "-m", "pyxen.xend", "start"], check=True, stdout=sys.stderr)
    for turn in range(_turns() + 1):
        for engine in ("xen", "qemu"):
            folder = _create(engine, turn)
            if turn:
                _memory(engine, int((folder / "pid").read_text().split()[0]))
            subprocess.run([*_XM, "destroy", "bench"], check=True, stdout=subprocess.DEVNULL)


def _create(engine: str, turn: int) -> Path:
    domains = Path("/run/xend/domains")
    before = set(domains.iterdir()) if domains.exists() else set()
    words = ["kernel=/vmlinux", "ramdisk=/ramdisk", f"cmdline={_WORDS}", "name=bench", f"memory={_MEMORY_MIB}"]
    began = time.time()
    xm = subprocess.Popen([*_XM, "create", "-q", *words, f"engine={engine}"])
    folder = Path()

    def ready() -> bool:
        nonlocal folder
        if xm.poll():
            raise RuntimeError(f"xm create engine={engine} failed")
        folder = next(iter(set(domains.iterdir()) - before), Path()) if domains.exists() else Path()
        log = folder / "console.log"
        return log.exists() and _FIRST_LINE in log.read_bytes()

    _until(f"the first line under {engine}", ready)
    ended = time.time()
    xm.wait()
    if turn:  # the first time, files are read and caches made
        resumed = _resumed(folder / "events")
        _say("start", engine, ended - began)
        _say("start.before_guest", engine, resumed - began)
        _say("start.guest", engine, ended - resumed)
    return folder


def _resumed(events: Path) -> float:
    """When the guest was let go, by the monitor."""
    for line in events.read_text().splitlines():
        event = json.loads(line)
        if event.get("event") == "RESUME":
            stamp = event["timestamp"]
            return float(stamp["seconds"] + stamp["microseconds"] / 1e6)
    raise RuntimeError(f"{events} tells of no start")


def _memory(engine: str, pid: int) -> None:
    """PSS, RSS and what is this process's alone, in MiB, of all mappings but the guest's RAM."""
    totals = {"Rss": 0, "Pss": 0, "Private_Clean": 0, "Private_Dirty": 0}
    size = 0
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        key, _, rest = line.partition(":")
        if key == "Size":
            size = int(rest.split()[0])
        elif key in totals and size < _MEMORY_MIB * 1024 * 9 // 10:
            totals[key] += int(rest.split()[0])
    _say("memory.rss", engine, totals["Rss"] / 1024)
    _say("memory.pss", engine, totals["Pss"] / 1024)
    _say("memory.private", engine, (totals["Private_Clean"] + totals["Private_Dirty"]) / 1024)


# Disk and network: the monitors alone


def disk() -> None:
    """The guest reads and writes a raw file in a RAM disk."""
    image = Path("/dev/shm/disk.img")
    image.write_bytes(os.urandom(1 << 20) * 64)
    for turn in range(_turns()):
        for engine, device in (("xen", "xvda"), ("qemu", "vda")):
            _measure(engine, "disk", f"disk /dev/{device}", disk=image, turn=turn)
    image.unlink()


def net() -> None:
    """The guest sends to this host and receives from it, through a tap device."""
    server = socket.create_server(("0.0.0.0", _PORT))
    threading.Thread(target=_serve, args=(server,), daemon=True).start()
    engines = ["xen", "qemu"] + (["qemu-vhost"] if Path("/dev/vhost-net").exists() else [])
    for turn in range(_turns()):
        for engine in engines:
            with _tap() as tap:
                _measure(engine, "net", f"net {_HOST} {_PORT}", tap=tap, turn=turn)


def _turns() -> int:
    return int(os.environ.get("PYXEN_BENCH_TURNS", "2"))


def _serve(server: socket.socket) -> None:
    """Serve one guest after the other; one that was ended leaves its connection broken."""
    chunk = bytearray(1 << 18)
    while True:
        connection, _ = server.accept()
        with connection, contextlib.suppress(ConnectionError):
            _answer(connection, chunk)


def _answer(connection: socket.socket, chunk: bytearray) -> None:
    """What the guest asks with its first byte: take all it sends, send it so many bytes, or give back each byte."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    match connection.recv(1):
        case b"s":
            while connection.recv_into(chunk):
                pass
            connection.sendall(b"k")
        case b"r":
            left = int.from_bytes(connection.recv(8, socket.MSG_WAITALL), "big")
            while left > 0:
                left -= connection.send(memoryview(chunk)[: min(left, len(chunk))])
        case b"e":
            while byte := connection.recv(1):
                connection.sendall(byte)


@contextlib.contextmanager
def _tap() -> Iterator[int]:
    fd = os.open("/dev/net/tun", os.O_RDWR)
    try:
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", b"bench0", _TAP_FLAGS))
        subprocess.run(["ifconfig", "bench0", _HOST, "netmask", "255.255.255.0", "up"], check=True)
        os.set_inheritable(fd, True)
        yield fd
    finally:
        os.close(fd)


def _measure(engine: str, kind: str, work: str, *, turn: int, disk: Path | None = None, tap: int | None = None) -> None:
    """Boot a guest that does ``work`` and says how long it took."""
    network = f"until ifconfig eth0 {_GUEST} netmask 255.255.255.0 up 2>/dev/null; do sleep 0.05; done"
    script = f"""
{network if tap is not None else ""}
/python -S -E -I /guest.py {work}
"""
    words = f"{_WORDS} tiny.run={base64.b64encode(script.encode()).decode()}"
    start = _start_xen if engine == "xen" else _start_qemu
    folder = Path("/run/bench")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    monitor = start(folder, words, disk, tap, vhost=engine == "qemu-vhost")
    log = folder / "console.log"

    def told() -> bool:
        if monitor.poll() is not None:
            raise RuntimeError(f"{engine} ended with status {monitor.returncode}: {(folder / 'stderr').read_text()}")
        text = log.read_text(errors="replace") if log.exists() else ""
        if "ended with status" in text and "BENCH {" not in text:
            raise RuntimeError(f"the guest under {engine} failed: {text}")
        return re.search(r"BENCH \{.*\}", text) is not None

    try:
        _until(f"the guest's work under {engine}", told)
    finally:
        monitor.send_signal(signal.SIGTERM)
        monitor.wait(30)
    found = re.search(r"BENCH (\{.*\})", log.read_text(errors="replace"))
    assert found is not None
    for name, value in json.loads(found[1]).items():
        _say(f"{kind}.{name}", engine, value)


def _start_xen(folder: Path, words: str, disk: Path | None, tap: int | None, *, vhost: bool) -> subprocess.Popen[bytes]:
    config: dict[str, Any] = {"name": "bench", "memory": _MEMORY_MIB}
    if disk is not None:
        config["disk"] = [{"vdev": "xvda", "target": str(disk), "format": "raw"}]
    if tap is not None:
        config["vif"] = [{"mac": _MAC}]
    spec = {
        "domid": 1,
        "uuid": str(uuid.UUID(int=1)),
        "config": config,
        "kernel": "/vmlinux",
        "ramdisk": "/ramdisk-python",
        "cmdline": f"console=hvc0 {words}",
    }
    (folder / "domain.json").write_text(json.dumps(spec))
    command = [sys.executable, "-m", "pyxen.hypervisor", f"{folder}/monitor"]
    return _spawn(folder, command + ([f"--tap=0={tap}"] if tap is not None else []), tap)


def _start_qemu(
    folder: Path, words: str, disk: Path | None, tap: int | None, *, vhost: bool
) -> subprocess.Popen[bytes]:
    command = [*_QEMU, "-initrd", "/ramdisk-python", "-serial", f"file:{folder}/console.log"]
    command += ["-append", f"console=ttyS0 {words}"]
    if disk is not None:
        command += ["-blockdev", f"driver=raw,node-name=disk,file.driver=file,file.filename={disk}"]
        command += ["-device", "virtio-blk-pci,drive=disk"]
    if tap is not None:
        command += ["-netdev", f"tap,id=net,fd={tap},vhost={'on' if vhost else 'off'}"]
        command += ["-device", f"virtio-net-pci,netdev=net,mac={_MAC},romfile="]
    return _spawn(folder, command, tap)


def _spawn(folder: Path, command: list[str], tap: int | None) -> subprocess.Popen[bytes]:
    with (folder / "stderr").open("wb") as stderr:
        fds = () if tap is None else (tap,)
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr, pass_fds=fds)


def exits() -> None:
    """Hypercalls a second, against a bare loop around KVM_RUN."""
    command = [sys.executable, "-m", "bench.exits", "3000"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for kind, rate in json.loads(done.stdout).items():
        _say(f"exits.{kind}", "bare" if kind == "bare" else "xen", rate)


CASES: Final = {"start": start, "disk": disk, "net": net, "exits": exits}

if __name__ == "__main__":
    main()

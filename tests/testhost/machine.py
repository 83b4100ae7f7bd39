"""The QEMU in which the test host runs."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyxen.errors import Unsupported
from tests.testhost import image

QBOOT = Path("/usr/share/qemu/qboot.rom")
_CMDLINE = (
    "console=ttyS0 panic=-1 no_timer_check mitigations=off cryptomgr.notests initcall_blacklist=crypto_kdf108_init"
)


@dataclass(frozen=True, slots=True)
class Done:
    """How a command in the test host ended. ``status`` None: the host itself died or took too long; see ``console``."""

    status: int | None
    output: str
    console: str


def run(
    command: Sequence[str],
    *,
    files: Mapping[str, Path] | None = None,
    environ: Mapping[str, str] | None = None,
    cpus: int = 1,
    memory_mib: int = 2048,
    timeout_s: float = 900,
    live: bool = False,
    layers: Sequence[Path] = (),
    counted: bool = False,
    iommu: Sequence[str] = (),
) -> Done:
    """Boot the test host, run ``command`` in it, end it.

    One CPU unless told otherwise: with two, each of them a thread of QEMU's, the whole machine has been seen to hang.
    ``files`` are put at their paths (the keys) in it; ``live``: show the command's output here as it comes. ``layers``
    are archives to unpack over the host's own. ``counted``: its clocks count executed instructions, a nanosecond each,
    and skip the time in which all CPUs sleep; so what it measures doesn't depend on how busy this machine is.
    ``iommu``: it is a machine with one, and has these devices (QEMU's words).
    """
    with tempfile.TemporaryDirectory(prefix="pyxen-testhost-") as folder:
        place = Path(folder)
        output, status = place / "output", place / "status"
        arguments = [
            *_arguments(
                place,
                list(command),
                dict(files or {}),
                dict(environ or {}),
                cpus,
                memory_mib,
                "quiet",
                layers,
                counted,
                iommu,
            ),
            *("-serial", f"file:{place / 'console'}"),
            *("-device", "virtio-serial-pci"),
            *("-chardev", f"file,id=output,path={output}"),
            *("-device", "virtserialport,chardev=output"),
            *("-chardev", f"file,id=status,path={status}"),
            *("-device", "virtserialport,chardev=status"),
        ]
        arguments += ["-monitor", f"unix:{place / 'monitor'},server=on,wait=off"]
        qemu = subprocess.Popen(arguments, stdin=subprocess.DEVNULL)
        evidence = _wait(qemu, output if live else None, timeout_s, place / "monitor", wake=not counted)
        said = _text(status).strip()
        return Done(int(said) if said else None, _text(output), _text(place / "console") + evidence)


def play(script: str, files: Mapping[str, Path], *, memory_mib: int = 2048) -> str:
    """What a shell script has printed in the test host; fails, with that, if it ended with an error."""
    done = run(["sh", "-c", script], files=files, memory_mib=memory_mib)
    output = done.output.replace("\r", "")
    assert done.status == 0, f"{output}\n{done.console}"
    return output


def _wait(qemu: subprocess.Popen[bytes], shown: Path | None, timeout_s: float, monitor: Path, *, wake: bool) -> str:
    """Wait for QEMU's end, or end it after ``timeout_s`` seconds; meanwhile show what is added to a file.

    Returns where its CPUs were if it had to be ended. ``wake``: see ``_Waker``.
    """
    deadline = time.monotonic() + timeout_s
    position = 0
    waker = _Waker(monitor)
    try:
        while qemu.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(subprocess.TimeoutExpired):
                qemu.wait(0.1)
            if wake:
                waker.look()
            if shown is not None and shown.exists():
                data = shown.read_bytes()[position:]
                position += len(data)
                sys.stdout.buffer.write(data)
                sys.stdout.buffer.flush()
        return _registers(monitor) if qemu.poll() is None else ""
    finally:
        qemu.kill()
        qemu.wait()


class _Waker:
    """Presses a key in a test host every few seconds.

    QEMU's emulation of SVM changes the word in which other threads note an interrupt without the lock that they take,
    so that now and then one is lost. The timer's then stays pending while the CPU is halted, or runs a guest that never
    exits (a VCPU that waits for another one), until another interrupt comes. A key's does no harm.
    """

    _EVERY_S = 2.0

    def __init__(self, monitor: Path) -> None:
        self._monitor = monitor
        self._next = time.monotonic() + self._EVERY_S

    def look(self) -> None:
        if (now := time.monotonic()) > self._next:
            self._next = now + self._EVERY_S
            with contextlib.suppress(OSError):
                _tell(self._monitor, b"sendkey shift\n")


def _tell(monitor: Path, *commands: bytes, pause_s: float = 0.1) -> bytes:
    """Type commands at QEMU's monitor, with pauses; what it has said. Raises OSError."""
    said = b""
    with socket.socket(socket.AF_UNIX) as caller:
        caller.settimeout(2)
        caller.connect(str(monitor))
        for command in commands:
            caller.sendall(command)
            time.sleep(pause_s)
        caller.shutdown(socket.SHUT_WR)
        with contextlib.suppress(TimeoutError):
            while data := caller.recv(65536):
                said += data
    return said


def _registers(monitor: Path) -> str:
    """All CPUs' registers, three times, and what interrupts they have pending, as QEMU's monitor tells them."""
    said = b""
    with contextlib.suppress(OSError):
        said = _tell(monitor, *[b"info registers -a\n"] * 3, b"info lapic\n", pause_s=0.5)
    wanted = ("CPU#", "RIP=", "EFER=", "IRR", "ISR")
    kept = (line.lstrip() for line in said.decode(errors="replace").splitlines() if line.lstrip().startswith(wanted))
    return "\nended while running:\n" + "\n".join(kept)


def boot_shell(*, files: Mapping[str, Path] | None = None, cpus: int = 1, memory_mib: int = 2048) -> int:
    """The test host with a shell on this terminal; returns QEMU's status."""
    with tempfile.TemporaryDirectory(prefix="pyxen-testhost-") as folder:
        arguments = _arguments(Path(folder), ["true"], dict(files or {}), {}, cpus, memory_mib, "quiet testhost=shell")
        return subprocess.run([*arguments, "-serial", "mon:stdio"], check=False).returncode


def _arguments(
    place: Path,
    command: list[str],
    files: dict[str, Path],
    environ: dict[str, str],
    cpus: int,
    memory_mib: int,
    words: str,
    layers: Sequence[Path] = (),
    counted: bool = False,
    iommu: Sequence[str] = (),
) -> list[str]:
    binary = shutil.which("qemu-system-x86_64")
    if binary is None or not QBOOT.exists():
        raise Unsupported("QEMU is not installed", hint="Install it: apt-get install qemu-system-x86")
    threads = "multi" if cpus <= len(os.sched_getaffinity(0)) and not counted else "single"
    kernel = image.kernel()
    initrd = place / "initrd"
    shutil.copyfile(image.base(kernel), initrd)
    with initrd.open("ab") as file:
        for layer in layers:
            file.write(layer.read_bytes())
        file.write(image.sources(files, command, environ))
    return [
        *(binary, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-machine", f"{'q35' if iommu else 'pc'},usb=off,hpet=off,vmport=off,graphics=off"),
        *(("-device", "intel-iommu,intremap=on", *iommu) if iommu else ()),
        *("-accel", f"tcg,thread={threads}"),
        *(("-icount", "shift=0,sleep=off") if counted else ()),
        # Without XSAVE: TCG does not tell a hypervisor of XSETBV, so guests inside would find sizes that are wrong.
        # Without fast string moves: kernels then move 8 bytes by an instruction, fairer where those count.
        *("-cpu", "max,-xsave,-erms,-fsrm" if counted else "max,-xsave", "-smp", str(cpus), "-m", str(memory_mib)),
        *("-bios", str(QBOOT), "-kernel", str(kernel.vmlinuz), "-initrd", str(initrd)),
        *("-append", f"{_CMDLINE} {words}{' intel_iommu=on' if iommu else ''}"),
    ]


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""

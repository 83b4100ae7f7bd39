"""The Xen engine against QEMU with KVM, both in the test host, where there is a KVM that works.

By default the test host's clocks count its instructions, so that the figures are the same on a busy machine: they say
what the CPU has to do, not how long it takes. An exit from the guest costs what the host's kernel does for it, and not
the thousand cycles that the CPU itself takes. ``PYXEN_BENCH_CLOCK=wall`` takes this machine's clock instead.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from bench.rows import Row, spread
from pyxen.image import ramdisk, tiny
from pyxen.image.cpio import Archive
from pyxen.image.kernel import unpack
from tests.testhost import image, run

_LAYER_VERSION = 3
_QEMU = Path("/usr/bin/qemu-system-x86_64")
_PROGRAMS = (_QEMU, Path("/usr/bin/env"), Path("/usr/bin/setpriv"))
"""With what the QEMU engine starts it by."""
_FIRMWARE = ("/usr/share/qemu/qboot.rom", "/usr/share/qemu/kvmvapic.bin", "/usr/share/qemu/pvh.bin",
             "/usr/share/qemu/linuxboot_dma.bin")  # fmt: skip
_MODULES = ("vhost_net",)
_FILES = ("__init__.py", "inside.py", "exits.py")
_ROOT = Path(__file__).parent

_SECONDS = {
    "start": ("xm create to the guest's first line", "s", 1.0, "< 0.7"),
    "start.before_guest": ("… of it before the guest runs", "s", 1.0, ""),
    "start.guest": ("… of it in the guest", "s", 1.0, ""),
    "disk.random_read": ("4 KiB read, one at a time", "us", 1e6, ""),
    "disk.random_write": ("4 KiB write, one at a time", "us", 1e6, ""),
    "disk.random_read_deep": ("4 KiB read, eight at a time", "us", 1e6, ""),
    "disk.random_write_deep": ("4 KiB write, eight at a time", "us", 1e6, ""),
    "disk.sequential_read": ("1 MiB read", "us", 1e6, ""),
    "disk.sequential_write": ("1 MiB write", "us", 1e6, ""),
    "net.send": ("1 MiB sent by TCP", "us", 1e6, ""),
    "net.receive": ("1 MiB received by TCP", "us", 1e6, ""),
    "net.round": ("a byte there and back by TCP", "us", 1e6, ""),
}
_MEMORY = {
    "memory.pss": ("proportional memory (PSS) beside the guest's", "< 0.5"),
    "memory.rss": ("resident memory (RSS) beside the guest's", "< 0.5"),
    "memory.private": ("memory of the process alone, beside the guest's", ""),
}
_CASES = ("start", "disk", "net", "exits")


def testhost() -> list[Row]:
    """All figures; ``PYXEN_BENCH_INSIDE`` chooses cases (start disk net exits)."""
    cases = os.environ.get("PYXEN_BENCH_INSIDE", " ".join(_CASES)).split()
    rows = []
    for case in cases:
        rows += _rows(_figures(case))
    return rows


def _figures(case: str) -> dict[str, dict[str, list[float]]]:
    """What bench.inside says: by figure and engine."""
    files = {f"/pyxen/bench/{name}": _ROOT / name for name in _FILES} | _guest_files()
    wall = os.environ.get("PYXEN_BENCH_CLOCK") == "wall"
    turns = os.environ.get("PYXEN_BENCH_TURNS", "5" if wall else "2")
    # Where instructions are counted there is one CPU for all, and the guest and vhost's thread in the kernel hang.
    modules = "while read -r each; do insmod $each 2>/dev/null; done </etc/bench-modules;" if wall else ""
    script = f"{modules} python -m bench.inside {case}"
    done = run(
        ["sh", "-c", script],
        files=files,
        layers=[_layer()],
        environ={"PYXEN_BENCH_TURNS": turns},
        memory_mib=3072,
        counted=not wall,
        timeout_s=900,
    )
    if done.status != 0:
        print(done.output, done.console, sep="\n", file=sys.stderr)
        raise RuntimeError(f"the test host's case {case} ended with status {done.status}")
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for line in done.output.splitlines():
        if line.startswith('{"figure"'):
            said = json.loads(line)
            found[said["figure"]][said["engine"]].append(said["value"])
    return found


def _rows(figures: Mapping[str, Mapping[str, list[float]]]) -> list[Row]:
    rows = []
    for name, engines in figures.items():
        if name.startswith("exits."):
            rate = statistics.median(next(iter(engines.values())))
            bare = statistics.median(figures["exits.bare"]["bare"])
            rows.append(Row(f"{name.removeprefix('exits.')}, in the test host", f"{rate:,.0f} /s", ""))
            if name != "exits.bare":
                rows.append(Row("  of a bare loop of exits", f"{rate / bare:.2f}", ""))
            continue
        if name in _MEMORY:
            what, aim = _MEMORY[name]
            unit, scale = "MiB", 1.0
        else:
            what, unit, scale, aim = _SECONDS[name]
        for engine, values in engines.items():
            rows.append(Row(f"{what}: {engine}", spread(values, unit, scale), ""))
        ours = statistics.median(engines["xen"])
        for engine in (each for each in engines if each != "xen"):
            theirs = statistics.median(engines[engine])
            if name.startswith(("disk.", "net.")):  # speed, not time
                rows.append(Row(f"  speed against {engine}", f"{theirs / ours:.2f}", ">= 0.7"))
            else:
                rows.append(Row(f"  ratio to {engine}", f"{ours / theirs:.2f}", aim))
    return rows


def _layer() -> Path:
    """QEMU with its libraries and firmware, and what else the benchmarks need in the host."""
    kernel = image.kernel()
    version = subprocess.run([str(_QEMU), "--version"], capture_output=True, text=True, check=True).stdout
    path = image.BUILD / f"qemu-{image.digest([_LAYER_VERSION, version, str(kernel.vmlinuz), _FIRMWARE])}.cpio"
    if path.exists():
        return path
    archive = Archive()
    for program in _PROGRAMS:
        archive.symlink(f"usr/bin/{program.name}", f"/bin/{program.name}")
        archive.file(f"bin/{program.name}", program.read_bytes(), 0o755)
    for library in sorted(image.libraries(list(_PROGRAMS))):
        archive.file(str(library).lstrip("/"), library.read_bytes(), 0o755)
    for each in map(Path, _FIRMWARE):
        archive.file(str(each).lstrip("/"), each.read_bytes())
    modules = list(kernel.modules.closure(_MODULES))
    for module in modules:
        archive.file(f"bench-modules/{module.name}.ko", module.data)
    archive.file("etc/bench-modules", "".join(f"/bench-modules/{module.name}.ko\n" for module in modules).encode())
    image.write(path, archive.pack())
    return path


def _guest_files() -> dict[str, Path]:
    """The guest's kernel and ramdisks, by their paths in the test host."""
    ramdisk.busybox()
    kernel = image.kernel()
    place = image.BUILD / "bench"
    place.mkdir(exist_ok=True)
    plain = tiny.make_ramdisk(kernel.modules)
    (place / "ramdisk").write_bytes(plain)
    (place / "ramdisk-python").write_bytes(plain + _python())
    return {
        "/vmlinux": unpack(kernel.vmlinuz, image.BUILD / "kernels").vmlinux,
        "/ramdisk": place / "ramdisk",
        "/ramdisk-python": place / "ramdisk-python",
    }


def _python() -> bytes:
    """The guest's part: this interpreter, as much of its library as guest.py takes, and guest.py."""
    guest = _ROOT / "guest.py"
    words = [sys.executable, "-S", "-E", "-I", "-c", f"""
import sys
sys.argv = ['', '']
sys.path.insert(0, {str(_ROOT)!r})
import runpy
before = set(sys.modules)
runpy.run_path({str(guest)!r}, run_name='guest')
print(*{{m.__file__ for m in sys.modules.values() if getattr(m, '__file__', None)}}, sep='\\n')
"""]  # fmt: skip
    library = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
    interpreter = Path(sys.executable).resolve()
    archive = Archive()
    files = [Path(name) for name in library]
    for path in [
        interpreter,
        *files,
        *sorted(image.libraries([interpreter, *(p for p in files if p.suffix == ".so")])),
    ]:
        archive.file(str(path).lstrip("/"), path.read_bytes(), 0o755)
    archive.symlink("python", str(interpreter))
    archive.file("guest.py", guest.read_bytes())
    archive.file("etc/dhcp", b"#!/bin/sh\n", 0o755)  # would take away the address that the script has set
    return archive.pack()

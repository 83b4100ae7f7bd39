"""What is kept of kernels is bounded; what a domain uses stays."""

from __future__ import annotations

import os
import time
from pathlib import Path

from pyxen.image.pruning import LEAST_AGE_S, mark_used, prune

MIB = 1 << 20


def make(path: Path, age_s: float = 0.0, size: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    os.utime(path, (time.time() - age_s,) * 2)
    return path


def test_the_oldest_go_first(tmp_path: Path) -> None:
    old = LEAST_AGE_S * 2
    for number, name in enumerate(("a", "b", "c", "d")):
        make(tmp_path / f"{name}.vmlinux", size=MIB)
        make(tmp_path / f"{name}.json", old - number)
    package = tmp_path / "packages" / "linux"
    make(package / "lib" / "module", size=MIB)
    make(package / "done", old + 10)
    ramdisk = make(tmp_path / "run" / "x.ramdisk", old + 5, MIB)
    make(tmp_path / "packages" / "names" / "linux-image", old + 100)
    make(tmp_path / "run" / "lock", old + 100)
    assert prune(tmp_path, [], 10 * MIB) == []
    # A domain has a folder of the package, another one the oldest kernel.
    used = [package / "lib", tmp_path / "a.vmlinux"]
    assert prune(tmp_path, used, 4 * MIB + 100_000) == [ramdisk, tmp_path / "b.vmlinux"]
    assert not (tmp_path / "b.json").exists()
    mark_used(tmp_path / "c.json")
    assert prune(tmp_path, used, 0) == [tmp_path / "d.vmlinux"]
    assert prune(tmp_path, [], 0) == [package, tmp_path / "a.vmlinux"]
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [
        *("c.json", "c.vmlinux", "linux-image", "lock")
    ]
    assert prune(tmp_path / "nowhere", [], 0) == []
    mark_used(tmp_path / "nowhere")

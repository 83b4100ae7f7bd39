"""Bounds what is kept of kernels: unpacked ones, packages and ramdisks of ``xm run`` (:mod:`pyxen.image.sandbox`).

All of it can be made again. What was used longest ago goes first; what a domain uses, or somebody may be about to
use, stays, whatever the bound.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

LEAST_AGE_S: Final = 3600.0
"""What was used since may be on its way into a domain."""


@dataclass(frozen=True, slots=True)
class _Item:
    parts: tuple[Path, ...]
    """The first one vouches for the others, so it goes first."""
    used_at: float
    """When it was made or used, in seconds since 1970."""
    size: int


def mark_used(path: Path) -> None:
    """Note that what ``path`` vouches for is used now."""
    with contextlib.suppress(OSError):
        os.utime(path)


def prune(kernels: Path, used: Collection[Path], most_bytes: int) -> list[Path]:
    """Remove from ``kernels`` until there are at most ``most_bytes``; what was removed. Blocking.

    ``used``: files and folders of domains.
    """
    kept = [path.resolve() for path in used]
    items = sorted(_items(kernels.resolve()), key=lambda item: item.used_at)
    total, removed = sum(item.size for item in items), []
    newest = time.time() - LEAST_AGE_S
    for item in items:
        if total <= most_bytes or item.used_at > newest:
            break
        if any(path.is_relative_to(part) for path in kept for part in item.parts):
            continue
        for part in item.parts:
            if part.is_dir() and not part.is_symlink():
                shutil.rmtree(part, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    part.unlink()
        total -= item.size
        removed.append(item.parts[-1])
    return removed


def _items(kernels: Path) -> Iterator[_Item]:
    for facts in kernels.glob("*.json"):
        yield from _item(facts, facts.with_suffix(".vmlinux"))
    for done in kernels.glob("packages/*/done"):
        yield from _item(done, done.parent)
    for ramdisk in kernels.glob("run/*.ramdisk"):
        yield from _item(ramdisk)


def _item(*parts: Path) -> Iterator[_Item]:
    with contextlib.suppress(OSError):
        yield _Item(parts, parts[0].stat().st_mtime, sum(map(_size, parts)))


def _size(path: Path) -> int:
    """Bytes on the disk."""
    if not path.is_dir():
        return path.lstat().st_blocks * 512
    return sum(each.lstat().st_blocks * 512 for each in path.rglob("*") if not each.is_dir())

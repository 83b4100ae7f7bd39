"""Descriptors that aren't ours, closed; and limits on what the process may ask for."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable
from pathlib import Path
from typing import Final

_MOST_DESCRIPTORS: Final = 1024
_THREADS_BESIDE_VCPUS: Final = 256


def close_others(keep: Iterable[int]) -> None:
    """Close all descriptors but the standard ones and ``keep``."""
    place = 3
    for fd in sorted({fd for fd in keep if fd >= place}):
        os.closerange(place, fd)
        place = fd + 1
    os.closerange(place, _highest() + 1)


def limit(*, threads: int | None) -> None:
    """No core dump, a bounded number of descriptors and, where ``threads`` is given, of the user's threads.

    Raises OSError or ValueError.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _lower(resource.RLIMIT_NOFILE, _MOST_DESCRIPTORS)
    if threads is not None:
        _lower(resource.RLIMIT_NPROC, threads + _THREADS_BESIDE_VCPUS)


def _lower(kind: int, most: int) -> None:
    _, hard = resource.getrlimit(kind)
    if hard == resource.RLIM_INFINITY or hard > most:
        resource.setrlimit(kind, (most, most))
    else:
        resource.setrlimit(kind, (hard, hard))


def _highest() -> int:
    return max(int(entry.name) for entry in Path("/proc/self/fd").iterdir())

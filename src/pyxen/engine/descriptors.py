"""Files that xend opens for a domain's processes, which may not be allowed to: handed over as descriptors.

QEMU takes them as *fd sets* and opens ``/dev/fdset/N`` where a file name is expected. One way for all files, whether
QEMU runs as xend's user or as one of its own.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


class Descriptors:
    """The descriptors that one process inherits. A context: all are closed in this process at its end."""

    def __init__(self, first: int = 1) -> None:
        """``first`` is the number of the first fd set."""
        self._first = first
        self.fds: list[int] = []
        """All of them, under the numbers that the process will know them by."""
        self.sets: dict[int, int] = {}
        """The descriptor in each fd set, by the set's number."""

    def __enter__(self) -> Descriptors:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self.fds:
            with contextlib.suppress(OSError):
                os.close(fd)
        self.fds.clear()

    @property
    def arguments(self) -> list[str]:
        """QEMU's words for the fd sets."""
        return [word for number, fd in self.sets.items() for word in ("-add-fd", f"fd={fd},set={number}")]

    def take(self, fd: int) -> int:
        """Let the process inherit ``fd``, which now belongs to this object; returns it."""
        self.fds.append(fd)
        return fd

    def add_set(self, fd: int) -> str:
        """Make an fd set of ``fd``; returns the name under which QEMU opens it."""
        number = self._first + len(self.sets)
        self.sets[number] = self.take(fd)
        return f"/dev/fdset/{number}"

    def open(self, path: Path | str, *, writable: bool) -> str:
        """Open a file and make an fd set of it; returns the name for QEMU. Raises OSError."""
        return self.add_set(os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC))

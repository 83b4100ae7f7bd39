"""Files that xend opens for QEMU, which may not be allowed to: handed over as descriptors.

QEMU takes them as *fd sets* and opens ``/dev/fdset/N`` where a file name is expected. One way for all files, whether
QEMU runs as xend's user or as one of its own.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


class Descriptors:
    """The descriptors that one QEMU inherits. A context: all are closed in this process at its end."""

    def __init__(self) -> None:
        self.fds: list[int] = []
        """All of them, under the numbers that QEMU will know them by."""
        self.arguments: list[str] = []
        """QEMU's words for the fd sets."""
        self._sets = 0

    def __enter__(self) -> Descriptors:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self.fds:
            with contextlib.suppress(OSError):
                os.close(fd)
        self.fds.clear()

    def take(self, fd: int) -> int:
        """Let QEMU inherit ``fd``, which now belongs to this object; returns it."""
        self.fds.append(fd)
        return fd

    def add_set(self, fd: int) -> str:
        """Make an fd set of ``fd``; returns the name under which QEMU opens it."""
        self.take(fd)
        self._sets += 1
        self.arguments += ["-add-fd", f"fd={fd},set={self._sets}"]
        return f"/dev/fdset/{self._sets}"

    def open(self, path: Path | str, *, writable: bool) -> str:
        """Open a file and make an fd set of it; returns the name for QEMU. Raises OSError."""
        return self.add_set(os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC))

"""A template: a guest's memory in a file that many guests map, each with changes of its own, and its devices' state.

The file is a memfd, sealed once it is filled: QEMU opens a memory file for writing even if it maps it privately, and a
guest that has broken out of its QEMU must not change what others run. It takes memory as long as somebody has it.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

from pyxen.engine.space import punch

_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_CHUNK = 1 << 20
FOLDER = "template"
"""In a domain's folder: that of the process which fills a template."""


class Template:
    """Empty at first; whoever starts the first guest from it fills it."""

    def __init__(self, size: int) -> None:
        """``size`` of the memory in bytes. Raises OSError."""
        self.size = size
        self.full = False
        self._memory = os.memfd_create("guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self._devices = os.memfd_create("devices", os.MFD_CLOEXEC)
        os.ftruncate(self._memory, size)

    def memory(self) -> int:
        """A descriptor of the memory, for the caller to close."""
        return os.dup(self._memory)

    def devices(self) -> int:
        """A descriptor of the devices' state, at its beginning, for the caller to close."""
        return os.open(f"/proc/self/fd/{self._devices}", os.O_RDWR | os.O_CLOEXEC)

    def seal(self) -> None:
        """It is filled: nobody may write to the memory any more. Blocking. Raises OSError while somebody might."""
        for start, length in _zeros(self._memory):
            punch(self._memory, start, length)
        fcntl.fcntl(self._memory, fcntl.F_ADD_SEALS, _SEALS)
        self.full = True

    def close(self) -> None:
        """Let go of it; guests that have it keep it."""
        for fd in (self._memory, self._devices):
            if fd >= 0:
                os.close(fd)
        self._memory = self._devices = -1


def _zeros(fd: int) -> Iterator[tuple[int, int]]:
    """Start and length of each piece that is nothing but pages of zeros.

    QEMU looks at each page before it fills it, which alone makes the file have it; most of a guest's are zeros.
    """
    whole, page = bytes(_CHUNK), bytes(mmap.PAGESIZE)
    start, at = 0, 0
    while data := os.pread(fd, _CHUNK, at):
        if data != whole:
            for offset in range(0, len(data), len(page)):
                if data[offset : offset + len(page)] != page:
                    if at + offset > start:
                        yield start, at + offset - start
                    start = at + offset + len(page)
        at += len(data)
    if at > start:
        yield start, at - start


def make_folder(directory: Path) -> Path:
    """The folder, as the contract has it, for the process that fills one. Raises OSError."""
    folder = directory / FOLDER
    folder.mkdir(mode=0o700)
    for name in ("console.log", "events"):
        (folder / name).touch(mode=0o600)
    os.mkfifo(folder / "console.in", 0o600)
    return folder

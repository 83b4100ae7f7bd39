"""A template: a guest's memory in a file that many guests map, each with changes of its own, and its devices' state.

The file is a memfd, sealed once it is filled: QEMU opens a memory file for writing even if it maps it privately, and a
guest that has broken out of its QEMU must not change what others run. It takes memory as long as somebody has it.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
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
        """It is filled: nobody may write to the memory any more. Raises OSError while somebody might."""
        fcntl.fcntl(self._memory, fcntl.F_ADD_SEALS, _SEALS)
        self.full = True

    def close(self) -> None:
        """Let go of it; guests that have it keep it."""
        for fd in (self._memory, self._devices):
            if fd >= 0:
                os.close(fd)
        self._memory = self._devices = -1


def make_folder(directory: Path) -> Path:
    """The folder, as the contract has it, for the process that fills one. Raises OSError."""
    folder = directory / FOLDER
    folder.mkdir(mode=0o700)
    for name in ("console.log", "events"):
        (folder / name).touch(mode=0o600)
    os.mkfifo(folder / "console.in", 0o600)
    return folder

"""A host whose disk can be filled."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from tests.guest.host import Host


class SmallHost(Host):
    """A xend whose state and sockets are on a file system of ``mib``."""

    def __init__(self, mib: int = 8) -> None:
        super().__init__()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=711", "pyxen-test", str(self.root)]
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
        if done.returncode:
            shutil.rmtree(self.root)
            pytest.skip(f"mount: {done.stderr.strip()}")
        self.make_folders()

    def fill(self) -> None:
        """Take all room that is left."""
        with (self.root / "fill").open("wb", buffering=0) as file:
            while True:
                try:
                    file.write(bytes(4096))
                except OSError:
                    break
        assert os.statvfs(self.root).f_bavail == 0

    def make_room(self) -> None:
        (self.root / "fill").unlink()

    def stop(self) -> list[str]:
        leftovers = super().stop()
        subprocess.run(["umount", "-l", str(self.root)], check=True)
        shutil.rmtree(self.root)
        return leftovers

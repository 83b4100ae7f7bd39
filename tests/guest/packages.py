"""Files of Debian's packages, for guests that boot what others have made."""

from __future__ import annotations

import fcntl
from pathlib import Path

from pyxen.image import debs
from tests.guest.host import CACHE

PACKAGES = CACHE / "packages"


def package(name: str, lists: debs.Lists | None = None) -> Path:
    """The files of one of Debian's packages, fetched once."""
    folder = PACKAGES / (f"{name}-{lists.architecture}" if lists else name)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            debs.unpack(name, folder, folder / "files", lists=lists)
            (folder / "done").touch()
    return folder / "files"

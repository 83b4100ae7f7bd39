"""Files that appear whole or not at all, and what to tell the user when the disk says no."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from pyxen.errors import PyxenError, ResourceExhausted, Unavailable


def write_file(path: Path, chunks: Iterable[bytes | memoryview], *, mode: int = 0o644) -> None:
    """Write ``path`` under another name, then rename it into place: a reader sees the old file or the new one.

    The folder is made where it is missing. Raises what :func:`storage_error` makes of an OSError.
    """
    try:
        make_folder(path.parent)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise storage_error(error, path) from error
    try:
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            os.fchmod(file.fileno(), mode)
            for chunk in chunks:
                _write_all(file.fileno(), chunk)
        Path(name).replace(path)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise storage_error(error, path) from error
        raise


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, that every user can look into, whatever the umask. Raises OSError."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    path.chmod(0o755)


def _write_all(descriptor: int, chunk: bytes | memoryview) -> None:
    rest = memoryview(chunk)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def storage_error(error: OSError, path: Path) -> PyxenError:
    """The error that a user sees when ``path`` could not be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceExhausted(
            f"cannot write {path}: no space is left on the disk",
            hint="Make room (xm image list shows the images), then run this again.",
        )
    return Unavailable(f"cannot write {path}: {error.strerror or error}")

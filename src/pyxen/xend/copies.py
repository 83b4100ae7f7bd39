"""Copies of disks: by reference where the file system can, else of the data alone, with holes kept. Blocking."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

from pyxen.engine.layers import backing
from pyxen.errors import ConfigError, Conflict, ResourceExhausted, Unsupported

_FICLONE = 0x40049409  # linux/fs.h
_CHUNK = 1 << 20


def copy_disk(source: Path, target: Path, format: str) -> int:
    """Make the new file ``target`` of a disk nobody writes to now, and sync it; returns its length.

    Raises Conflict if ``target`` is there already, ResourceExhausted if it can't be made, Unsupported for a qcow2 file
    that only knows the one below it by a way from its own folder. Nothing is left of it then.
    """
    try:
        if format == "qcow2" and (below := backing(str(source))) is not None and _is_relative(source):
            raise Unsupported(
                f"{source} names the file below it by a way from its own folder, a copy elsewhere would not find it",
                hint=f"Say the whole way: qemu-img rebase -u -F {below[1]} -b {Path(below[0]).resolve()} {source}",
            )
        return _copy(source, target)
    except FileExistsError:
        raise name_taken(target) from None
    except OSError as error:
        raise ResourceExhausted(f"{source} can't be copied to {target}: {error.strerror}") from error
    except ConfigError as error:
        raise Unsupported(error.message, hint=error.hint) from error


def sync_folder(folder: Path) -> None:
    """What has got its name in the folder, or lost it, is so on the disk. Raises OSError."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _is_relative(source: Path) -> bool:
    """Does a qcow2 file with one below it say where that is from its own folder? (QEMU's docs/interop/qcow2.txt)"""
    with source.open("rb") as file:
        header = file.read(20)
        file.seek(int.from_bytes(header[8:16], "big"))
        name = file.read(int.from_bytes(header[16:20], "big"))
    return not name.removeprefix(b"file:").startswith(b"/")


def name_taken(path: Path) -> Conflict:
    """What a file at ``path`` means where a new domain's is to be."""
    return Conflict(
        f"there is {path}, of an earlier domain of that name",
        hint="Remove that file, if nothing in it is wanted any more, or choose another name.",
    )


def _copy(source: Path, target: Path) -> int:
    before = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        after = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            length = os.fstat(before).st_size
            try:
                fcntl.ioctl(after, _FICLONE, before)
            except OSError:
                _copy_data(before, after, length)
            os.fsync(after)
        except BaseException:
            target.unlink(missing_ok=True)
            raise
        finally:
            os.close(after)
    finally:
        os.close(before)
    return length


def _copy_data(before: int, after: int, length: int) -> None:
    os.ftruncate(after, length)
    at = 0
    while at < length:
        try:
            at = os.lseek(before, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                return
            raise
        end = os.lseek(before, at, os.SEEK_HOLE)
        while at < end:
            data = os.pread(before, min(_CHUNK, end - at), at)
            if not data:
                return
            written = 0
            while written < len(data):
                written += os.pwrite(after, memoryview(data)[written:], at + written)
            at += len(data)

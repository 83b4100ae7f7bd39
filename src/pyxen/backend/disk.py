"""What a virtual block device stands on: a raw file or block device, or (``nbd``) an image behind a server."""

from __future__ import annotations

import ctypes
import fcntl
import os
import stat
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from pyxen.errors import NotFound, Unavailable, Unsupported

# linux/fs.h, linux/falloc.h
_BLKGETSIZE64 = 0x80081272
_BLKSSZGET = 0x1268
_BLKDISCARD = 0x1277
_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_RANGE = struct.Struct("=QQ")
_IOV_MAX = 1024


class Disk(Protocol):
    """Offsets and lengths are in bytes and lie within ``size``. May be called from several threads. Raises OSError."""

    @property
    def size(self) -> int: ...

    @property
    def sector_size(self) -> int: ...

    @property
    def read_only(self) -> bool: ...

    @property
    def discards(self) -> bool:
        """Whether ``discard`` does anything."""
        ...

    def read_into(self, offset: int, views: Sequence[memoryview]) -> None:
        """Fill ``views``, one after the other."""
        ...

    def write_from(self, offset: int, views: Sequence[memoryview]) -> None: ...

    def flush(self) -> None:
        """What has been written survives the host's loss of power."""
        ...

    def discard(self, offset: int, length: int) -> None:
        """The contents there are of no further use."""
        ...

    def cancel(self, on: bool) -> None:
        """Whether requests that would wait for something to be done on the host fail instead."""
        ...

    def close(self) -> None: ...


class RawDisk:
    """A file or block device whose bytes are the disk's: the kernel copies straight into and out of guest memory."""

    def __init__(self, fd: int, *, read_only: bool) -> None:
        """``fd`` is open for what is to be done, and belongs to this object from now on."""
        self._fd = fd
        self.read_only = read_only
        self._is_block = stat.S_ISBLK(os.fstat(self._fd).st_mode)
        self.sector_size = self._ask(_BLKSSZGET, 4) if self._is_block else 512
        self.discards = not read_only

    @classmethod
    def open(cls, path: Path, *, read_only: bool) -> RawDisk:
        """Raises NotFound, or Unavailable where it can't be opened."""
        try:
            fd = os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise NotFound(f"there is no disk {path}") from error
        except OSError as error:
            raise Unavailable(f"cannot open the disk {path}: {error.strerror}") from error
        return cls(fd, read_only=read_only)

    @property
    def size(self) -> int:
        """As it is now: a file may have been made longer."""
        return self._ask(_BLKGETSIZE64, 8) if self._is_block else os.fstat(self._fd).st_size

    def read_into(self, offset: int, views: Sequence[memoryview]) -> None:
        self._all(os.preadv, offset, views)

    def write_from(self, offset: int, views: Sequence[memoryview]) -> None:
        self._all(os.pwritev, offset, views)

    def flush(self) -> None:
        os.fdatasync(self._fd)

    def discard(self, offset: int, length: int) -> None:
        """Give the blocks back to the file system; one that can't is no error."""
        if self._is_block:
            fcntl.ioctl(self._fd, _BLKDISCARD, _RANGE.pack(offset, length))
            return
        if _fallocate()(self._fd, _PUNCH_HOLE | _KEEP_SIZE, offset, length) != 0:
            self.discards = False

    def cancel(self, on: bool) -> None:
        """There is nothing to wait for."""

    def grow(self, size: int) -> None:
        """Make a file ``size`` bytes long. A block device has the size that the host gives it: Unsupported for another.

        Raises OSError.
        """
        if not self._is_block:
            os.ftruncate(self._fd, size)
        elif size != self.size:
            raise Unsupported(
                f"it is a block device of {self.size} bytes, which the host must make longer first",
                hint="A logical volume: lvextend. Then give the size that it has.",
            )

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _ask(self, request: int, width: int) -> int:
        return int.from_bytes(fcntl.ioctl(self._fd, request, bytes(width)), "little")

    def _all(self, transfer: Transfer, offset: int, views: Sequence[memoryview]) -> None:
        rest = list(views)
        wanted = sum(map(len, rest)) if len(rest) <= _IOV_MAX else -1
        while rest:
            done = transfer(self._fd, rest[:_IOV_MAX], offset)
            if done == 0:
                raise OSError("the disk ends before its end")
            if done == wanted:  # nearly always, and no view need be looked at
                return
            offset += done
            while rest and done >= len(rest[0]):
                done -= len(rest.pop(0))
            if done:
                rest[0] = rest[0][done:]


class Transfer(Protocol):
    """os.preadv or os.pwritev."""

    def __call__(self, fd: int, buffers: list[memoryview], offset: int, /) -> int: ...


class _Fallocate(Protocol):
    def __call__(self, fd: int, mode: int, offset: int, length: int, /) -> int: ...


def _fallocate() -> _Fallocate:
    function = ctypes.CDLL(None, use_errno=True).fallocate
    function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    call: _Fallocate = function
    return call

"""fallocate(2): disk space for a file, taken before it is needed or given back behind what is read no more.

Both keep the file's size, which ``os.posix_fallocate`` can't. Flags are from linux/falloc.h.
"""

from __future__ import annotations

import ctypes
import os

_KEEP_SIZE = 0x01
_PUNCH_HOLE = 0x02


def reserve(fd: int, length: int) -> None:
    """Take room for the file's first ``length`` bytes. Raises OSError."""
    _fallocate(fd, _KEEP_SIZE, 0, length)


def punch(fd: int, offset: int, length: int) -> None:
    """Free the blocks of a range; it then reads as zeros. Raises OSError."""
    _fallocate(fd, _PUNCH_HOLE | _KEEP_SIZE, offset, length)


def _fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    if libc.fallocate(fd, mode, offset, length) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))

"""System calls that Python has no words for, made through the C library."""

from __future__ import annotations

import ctypes
import os
from typing import Any, Final

_PR_SET_NAME: Final = 15
_libc: Any = ctypes.CDLL(None, use_errno=True)


def checked(name: str, *arguments: object) -> int:
    """Call the C library's function ``name``; integers go as C longs. Raises OSError where it answers -1."""
    values = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    result: int = getattr(_libc, name)(*values)
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def prctl(option: int, second: int = 0, third: int = 0) -> int:
    """prctl(2) with what isn't given as 0. Raises OSError."""
    return checked("prctl", option, second, third, 0, 0)


def name_thread(name: str) -> None:
    """Name the calling thread, for ``ps -L`` and /proc; 15 bytes of it count."""
    checked("prctl", _PR_SET_NAME, name.encode(), 0, 0, 0)

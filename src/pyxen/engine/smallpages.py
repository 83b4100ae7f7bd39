"""Processes without transparent huge pages: PR_SET_THP_DISABLE of prctl(2), which a process hands on to its children.

QEMU asks for them for its translated code: 2 MiB for a few functions, 8 MiB in each of fifty clones that are idle.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Iterator
from typing import Final

_PR_SET_THP_DISABLE: Final = 41  # linux/prctl.h
_spawning = threading.Lock()
"""The setting is the whole process's, whichever thread makes it."""


@contextlib.contextmanager
def pages(*, small: bool) -> Iterator[None]:
    """What this thread starts meanwhile has ``small`` pages only, or those that the host gives it."""
    with _spawning:
        if small:
            _set(True)
        try:
            yield
        finally:
            if small:
                _set(False)


def _set(off: bool) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_THP_DISABLE, *map(ctypes.c_ulong, (off, 0, 0, 0)))

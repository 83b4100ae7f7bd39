"""Be told when a file grows, without asking for it again and again: inotify(7) on an asyncio loop."""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
from collections.abc import Callable
from pathlib import Path

IN_MODIFY = 0x2
IN_NONBLOCK = os.O_NONBLOCK
IN_CLOEXEC = os.O_CLOEXEC
_EVENT = struct.Struct("iIII")  # wd, mask, cookie, length of the name that follows


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.inotify_init1.argtypes = [ctypes.c_int]
    libc.inotify_add_watch.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32]
    libc.inotify_rm_watch.argtypes = [ctypes.c_int, ctypes.c_int]
    return libc


class Inotify:
    """One inotify instance on the running loop; a callback for each file watched.

    Raises OSError when the kernel's limits on instances or watches are reached.
    """

    def __init__(self) -> None:
        self._libc = _libc()
        self._fd = self._libc.inotify_init1(IN_NONBLOCK | IN_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        self._callbacks: dict[int, list[Callable[[], None]]] = {}
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._read)

    def watch(self, path: Path, callback: Callable[[], None]) -> Callable[[], None]:
        """Call ``callback`` on the loop after each change of ``path``; returns what ends the watch.

        Changes made between two calls may be reported as one, so read the file to its end each time.
        """
        number = self._libc.inotify_add_watch(self._fd, os.fsencode(path), IN_MODIFY)
        if number < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(path))
        callbacks = self._callbacks.setdefault(number, [])
        callbacks.append(callback)

        def unwatch() -> None:
            if callback not in callbacks:
                return
            callbacks.remove(callback)
            # The kernel gives one number for one inode: it goes with its last callback.
            if not callbacks and self._callbacks.get(number) is callbacks:
                del self._callbacks[number]
                self._libc.inotify_rm_watch(self._fd, number)

        return unwatch

    def close(self) -> None:
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
            self._callbacks.clear()

    def _read(self) -> None:
        try:
            data = os.read(self._fd, 65536)
        except BlockingIOError:
            return
        numbers = set()
        offset = 0
        while offset < len(data):
            number, _mask, _cookie, length = _EVENT.unpack_from(data, offset)
            offset += _EVENT.size + length
            numbers.add(number)
        for number in numbers:
            for callback in list(self._callbacks.get(number, ())):
                callback()

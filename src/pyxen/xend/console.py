"""A running domain's console: many may watch it, many may type.

The output is the domain's ``console.log`` (see :mod:`pyxen.engine.contract`). A view holds an offset into that file and
nothing else, so a slow viewer neither holds up another nor takes memory; what it has missed is freed from the file
behind it, and the offsets tell. What is typed goes into the FIFO ``console.in``.
"""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

from pyxen.engine.inotify import Inotify
from pyxen.engine.space import punch
from pyxen.errors import Conflict, ResourceExhausted

REPLAY_BYTES = 64 * 1024
KEPT_BYTES = 1024 * 1024
_CHUNK_BYTES = 64 * 1024


class ConsoleView:
    """One viewer: ``async for offset, data in view``. A jump in the offsets is output that was no longer kept.

    Ends when the console is closed and all its output has been read; ``reason`` then says why.
    """

    def __init__(self, console: Console, offset: int) -> None:
        self._console = console
        self._grown = asyncio.Event()
        self.offset = offset

    @property
    def reason(self) -> str | None:
        """Why the console was closed; None while it is open."""
        return self._console.reason

    def __aiter__(self) -> ConsoleView:
        return self

    async def __anext__(self) -> tuple[int, bytes]:
        while True:
            self._grown.clear()
            offset, data = self._console.read(self.offset)
            if data:
                self.offset = offset + len(data)
                return offset, data
            if self._console.reason is not None:
                self.close()
                raise StopAsyncIteration
            await self._grown.wait()

    def close(self) -> None:
        """Stop watching."""
        self._console.detach(self)

    def wake(self) -> None:
        """There may be more to read."""
        self._grown.set()


class Console:
    """The console of the domain whose folder is ``directory``; belongs to one event loop's thread.

    Raises Conflict if the folder holds no console, ResourceExhausted if the kernel allows no more watches.
    """

    def __init__(self, directory: Path, inotify: Inotify) -> None:
        self.reason: str | None = None
        self._directory = directory
        self._views: set[ConsoleView] = set()
        self._input = _Input(directory / "console.in")
        log = directory / "console.log"
        self._fd, self._punchable = _open_log(log)
        try:
            self._unwatch = inotify.watch(log, self._grew)
        except OSError as error:
            os.close(self._fd)
            raise ResourceExhausted(
                f"cannot watch {log}: {error.strerror}", hint="Raise the sysctl fs.inotify.max_user_watches."
            ) from error
        self._size = 0
        self._start = _first_kept(self._fd)
        self.trim()

    @property
    def size(self) -> int:
        """Bytes that the domain has printed so far, also those no longer kept."""
        if self._fd >= 0:
            self._size = os.fstat(self._fd).st_size
        return self._size

    @property
    def start(self) -> int:
        """The offset of the first byte still kept."""
        return self._start

    def attach(self, after: int | None = None) -> ConsoleView:
        """Watch: all kept output from offset ``after`` on, or the last 64 KiB, then what comes."""
        size = self.size
        wanted = size - REPLAY_BYTES if after is None else min(after, size)
        view = ConsoleView(self, max(wanted, self._start))
        self._views.add(view)
        return view

    def detach(self, view: ConsoleView) -> None:
        self._views.discard(view)
        self._let_go()

    def read(self, offset: int) -> tuple[int, bytes]:
        """Up to 64 KiB of what is kept at ``offset`` or, if that is gone, at the first byte kept: (offset, bytes)."""
        offset = max(offset, self._start)
        return offset, os.pread(self._fd, _CHUNK_BYTES, offset) if self._fd >= 0 else b""

    def tail(self, count: int) -> bytes:
        """The last ``count`` bytes, or as many of them as are kept. May be called from another thread."""
        size = self.size
        start = max(size - count, self._start)
        return os.pread(self._fd, size - start, start) if self._fd >= 0 else b""

    async def write(self, data: bytes) -> None:
        """Type ``data`` into the guest; waits while the guest reads nothing. Raises Conflict once nobody is there."""
        await self._input.write(data)

    def trim(self) -> None:
        """Give the blocks before the last MiB back to the file system, once another MiB has come."""
        # Whole MiB only: a hole that starts or ends within a block would leave zeros that look like output.
        keep_from = (self.size - KEPT_BYTES) // KEPT_BYTES * KEPT_BYTES
        if keep_from <= self._start or not self._punchable:
            return
        try:
            punch(self._fd, self._start, keep_from - self._start)
        except OSError:
            self._punchable = False
        else:
            self._start = keep_from

    def close(self, reason: str) -> None:
        """The domain has gone: no more input; each view ends with ``reason`` once it has read what is left."""
        if self.reason is not None:
            return
        self.reason = reason
        self._unwatch()
        self._input.close()
        for view in self._views:
            view.wake()
        self._let_go()

    def _grew(self) -> None:
        self.trim()
        for view in self._views:
            view.wake()

    def _let_go(self) -> None:
        if self.reason is not None and not self._views and self._fd >= 0:
            self._size = self.size
            os.close(self._fd)
            self._fd = -1


class _Input:
    """The writing end of a FIFO, opened when first needed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1
        self._turn = asyncio.Lock()
        self._writable: asyncio.Future[None] | None = None
        self._closed = False

    async def write(self, data: bytes) -> None:
        # One writer at a time: what one client sends stays together, and each client has at most one message waiting.
        async with self._turn:
            rest = memoryview(data)
            while rest:
                try:
                    rest = rest[os.write(self._open(), rest) :]
                except BlockingIOError:
                    await self._until_writable()
                except OSError as error:
                    self._close_descriptor()
                    raise self._nobody() from error

    def close(self) -> None:
        self._closed = True
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._close_descriptor()

    def _open(self) -> int:
        if self._closed:
            raise self._nobody()
        if self._fd < 0:
            self._fd = os.open(self._path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        return self._fd

    async def _until_writable(self) -> None:
        loop = asyncio.get_running_loop()
        self._writable = loop.create_future()
        loop.add_writer(self._fd, _settle, self._writable)
        try:
            await self._writable
        finally:
            self._writable = None
            if self._fd >= 0:
                loop.remove_writer(self._fd)

    def _close_descriptor(self) -> None:
        if self._fd >= 0:
            if self._writable is not None:
                asyncio.get_running_loop().remove_writer(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _nobody(self) -> Conflict:
        return Conflict(
            f"nobody reads what is typed at {self._path}", hint="The domain has stopped, or its monitor has died."
        )


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _open_log(path: Path) -> tuple[int, bool]:
    """A descriptor of the log, and whether it may be punched (it may belong to the domain's own user)."""
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC), True
    except PermissionError:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC), False
    except OSError as error:
        raise Conflict(f"there is no console at {path}: {error.strerror}") from error


def _first_kept(fd: int) -> int:
    """Where an earlier xend's holes end. A file system without holes calls everything data."""
    try:
        return os.lseek(fd, 0, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:  # no data up to the end
            return os.fstat(fd).st_size
        return 0

"""Commands and files by QEMU's guest agent.

It takes a command's input all at once and gives its output when it has ended, and reads and writes files piece by
piece. It starts nothing on a terminal.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import errno
import os
import struct
from collections import deque
from typing import Any, Final, NoReturn

from pyxen import agent_api
from pyxen.abi.agent import Stream
from pyxen.abi.qga import MOST_OUTPUT
from pyxen.errors import Conflict, PyxenError, Unsupported
from pyxen.xend.agent_words import ENV, explain
from pyxen.xend.qga_link import QgaError, QgaLink

MOST_INPUT: Final = 4 << 20
_PIECE: Final = 48 << 10
_SIGHUP: Final = 1
_ELSEWHERE: Final = 'cd "$1" && shift && exec "$@"'
_SEEK_SET, _SEEK_END = 0, 2
_ERRNOS: Final = {
    os.strerror(number): number
    for number in (
        *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.ELOOP),
        *(errno.ENAMETOOLONG, errno.ETXTBSY, errno.ENOEXEC, errno.EIO, errno.EINVAL, errno.E2BIG, errno.ENXIO),
    )
}
"""By how the C library words them, which the agent ends its own words with."""


async def begin(link: QgaLink, request: agent_api.AgentRequest) -> GuestExec | GuestRead | GuestWrite:
    """Start a command (as soon as its input is there), or open a file. Raises PyxenError."""
    try:
        match request:
            case agent_api.ExecRequest():
                return GuestExec(link, request)
            case agent_api.ReadFileRequest():
                return await _open_to_read(link, request)
            case agent_api.WriteFileRequest():
                return await _open_to_write(link, request)
    except QgaError as error:
        raise refusal(link.name, request, error) from None


def refusal(name: str, request: agent_api.AgentRequest | None, error: QgaError) -> PyxenError:
    """What the agent's words come to."""
    if error.unknown:
        return Unsupported(
            f"QEMU's guest agent in '{name}' may not do that: {error.words}",
            hint="Its settings in the guest say what it may: /etc/qemu/qemu-ga.conf",
        )
    ending = error.words.rstrip(")'\"\u201d\u2019. ")
    number = next((number for words, number in _ERRNOS.items() if ending.endswith(words)), None)
    if number is None or request is None:
        return Conflict(f"QEMU's guest agent in '{name}' says: {error.words}")
    return explain(name, request, number)


class _Command:
    """What they have in common: no signal or terminal reaches a file."""

    def __init__(self, link: QgaLink, request: agent_api.AgentRequest) -> None:
        self._link = link
        self._request = request
        self.started: bytes | None = bytes(16)
        self.wait_status: int | None = None

    @property
    def over(self) -> bool:
        return self.wait_status is not None

    async def signal(self, number: int) -> None:
        pass

    async def resize(self, rows: int, columns: int) -> None:
        pass

    async def write(self, data: bytes) -> None:
        pass

    async def end_input(self) -> None:
        pass

    def _fail(self, error: QgaError) -> NoReturn:
        self.wait_status = 1
        raise refusal(self._link.name, self._request, error) from None


class GuestExec(_Command):
    """A command. It starts when all of its input is there."""

    def __init__(self, link: QgaLink, request: agent_api.ExecRequest) -> None:
        if request.tty:
            raise Unsupported(
                f"QEMU's guest agent, which '{link.name}' has, gives commands no terminal", hint="Leave -t out."
            )
        super().__init__(link, request)
        self._exec = request
        self._input = bytearray()
        self._fed = asyncio.Event()
        self._starting: asyncio.Task[int] | None = None
        self._pieces: deque[tuple[Stream, bytes]] = deque()
        self._cut = False
        self._problem: PyxenError | None = None

    async def output(self) -> tuple[Stream, bytes] | None:
        try:
            await self._run()
        except QgaError as error:
            self._fail(error)
        if self._pieces:
            return self._pieces.popleft()
        if self._cut:
            raise Conflict(
                f"the command in '{self._link.name}' said more than QEMU's guest agent keeps: this is the beginning",
                hint=f"It keeps {MOST_OUTPUT >> 20} MiB. Have it write a file, and copy that: xm cp",
            )
        return None

    async def write(self, data: bytes) -> None:
        if self._fed.is_set():
            return
        self._input += data
        if len(self._input) > MOST_INPUT:
            self._input.clear()
            self._problem = Conflict(
                f"QEMU's guest agent, which '{self._link.name}' has, takes {MOST_INPUT >> 20} MiB of input at most",
                hint="Copy it there first: xm cp",
            )
            self._fed.set()

    async def end_input(self) -> None:
        self._fed.set()

    async def signal(self, number: int) -> None:
        if self._starting is not None and not self.over:
            with contextlib.suppress(QgaError):
                pid = await asyncio.shield(self._starting)
                await self._link.run(["/bin/sh", "-c", f"kill -{number} {pid}"])

    async def abandon(self) -> None:
        if self._starting is None:
            self.wait_status = _SIGHUP  # it never ran
            return
        with contextlib.suppress(PyxenError):
            await self.signal(_SIGHUP)

    async def _run(self) -> None:
        await self._fed.wait()
        if self._problem is not None:
            self.wait_status = 1
            raise self._problem
        if self.over:
            return
        if self._starting is None:
            argv = self._exec.argv
            if self._exec.cwd != "/":
                argv = ["/bin/sh", "-c", _ELSEWHERE, "sh", self._exec.cwd, *argv]
            env = {**ENV, **self._exec.env}
            self._starting = asyncio.create_task(self._link.start(argv, env, bytes(self._input)))
        status, found = await self._link.until_ended(await asyncio.shield(self._starting))
        if self.over:
            return
        for stream, key in ((Stream.OUT, "out"), (Stream.ERR, "err")):
            data = self._link.data(found, f"{key}-data")
            self._pieces.extend((stream, data[at : at + _PIECE]) for at in range(0, len(data), _PIECE))
            self._cut |= found.get(f"{key}-truncated") is True
        self.wait_status = status


class _File(_Command):
    def __init__(self, link: QgaLink, request: agent_api.AgentRequest, handle: int, mode: int, size: int) -> None:
        super().__init__(link, request)
        self._handle = handle
        self.started = struct.pack("<IIQ", mode & 0xFFFF, 0, size)

    async def abandon(self) -> None:
        if not self.over:
            self.wait_status = 1
            with contextlib.suppress(PyxenError, QgaError):
                await self.close()

    async def close(self) -> None:
        await self._link.ask("guest-file-close", {"handle": self._handle})


class GuestRead(_File):
    """A file that is read."""

    def __init__(self, link: QgaLink, request: agent_api.AgentRequest, handle: int, mode: int, size: int) -> None:
        super().__init__(link, request, handle, mode, size)
        self._first: bytes | None = None

    async def output(self) -> tuple[Stream, bytes] | None:
        data, self._first = self._first, None
        try:
            if data is None and not self.over:
                data = await self.read()
            if data:
                return Stream.OUT, data
            if not self.over:
                await self.close()
                self.wait_status = 0
        except QgaError as error:
            self._fail(error)
        return None

    async def peek(self) -> None:
        """See if it can be read at all. Raises QgaError."""
        self._first = await self.read()

    async def read(self) -> bytes:
        found = await self._link.ask("guest-file-read", {"handle": self._handle, "count": _PIECE})
        return self._link.data(found, "buf-b64")


class GuestWrite(_File):
    """A file that is written."""

    _new = False
    _ended: asyncio.Event

    def __init__(self, link: QgaLink, request: agent_api.WriteFileRequest, handle: int, *, new: bool) -> None:
        super().__init__(link, request, handle, request.mode, 0)
        self._path, self._mode = request.path, request.mode
        self._new = new
        self._ended = asyncio.Event()
        self._error: QgaError | None = None

    async def output(self) -> tuple[Stream, bytes] | None:
        await self._ended.wait()
        if self._error is not None:
            self._fail(self._error)
        return None

    async def write(self, data: bytes) -> None:
        try:
            for at in range(0, len(data), _PIECE):
                rest = data[at : at + _PIECE]
                while rest and not self._ended.is_set():
                    words = {"handle": self._handle, "buf-b64": base64.b64encode(rest).decode()}
                    written = self._link.number(await self._link.ask("guest-file-write", words), "count")
                    if not 0 < written <= len(rest):
                        raise self._link.nonsense("guest-file-write")
                    rest = rest[written:]
        except QgaError as error:
            await self._end(error)

    async def end_input(self) -> None:
        await self._end(None)

    async def _end(self, error: QgaError | None) -> None:
        if self._ended.is_set():
            return
        try:
            await self.close()
            if error is None and self._new:
                # Where it may run nothing, the file has the mode that the agent gives to all.
                with contextlib.suppress(QgaError):
                    await self._link.run(["/bin/sh", "-c", 'chmod "$1" "$2"', "sh", f"{self._mode:o}", self._path])
        except QgaError as late:
            error = error or late
        self._error = error
        if error is None:
            self.wait_status = 0
        self._ended.set()


async def _open_to_read(link: QgaLink, request: agent_api.ReadFileRequest) -> GuestRead:
    handle = await _open(link, request.path, "r")
    size, mode = 0, 0o644
    with contextlib.suppress(QgaError):
        size = await _seek(link, handle, 0, _SEEK_END)
        await _seek(link, handle, 0, _SEEK_SET)
    with contextlib.suppress(QgaError):
        status, found = await link.run(["/bin/sh", "-c", 'stat -L -c %a "$1"', "sh", request.path])
        words = link.data(found, "out-data")[:8].strip()
        mode = int(words, 8) if status == 0 and words.isdigit() else mode
    read = GuestRead(link, request, handle, mode & 0o7777, min(max(size, 0), (1 << 63) - 1))
    try:
        await read.peek()
    except BaseException:
        await read.abandon()
        raise
    return read


async def _open_to_write(link: QgaLink, request: agent_api.WriteFileRequest) -> GuestWrite:
    new = False
    try:
        await link.ask("guest-file-close", {"handle": await _open(link, request.path, "r")})
    except QgaError as error:
        new = error.words.rstrip(")' .").endswith(os.strerror(errno.ENOENT))
    return GuestWrite(link, request, await _open(link, request.path, "w"), new=new)


async def _open(link: QgaLink, path: str, mode: str) -> int:
    return link.number(await link.ask("guest-file-open", {"path": path, "mode": mode}), "")


async def _seek(link: QgaLink, handle: int, offset: int, whence: int) -> int:
    found: Any = await link.ask("guest-file-seek", {"handle": handle, "offset": offset, "whence": whence})
    return link.number(found, "position")

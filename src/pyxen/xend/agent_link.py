"""A conversation with one guest's agent: commands and files at the same time over one connection.

Neither side gets more than it has room for: each stream of a command has a window, and whoever takes its bytes says so.
A guest that keeps to nothing is hung up on.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
from collections import deque
from collections.abc import Callable
from functools import partial

from pyxen.abi.agent import MOST_COMMANDS, MOST_PAYLOAD, NONCE_SIZE, OUTPUT_WINDOW, STDIN_WINDOW, Kind, Stream
from pyxen.errors import EngineError, InvalidRequest, PyxenError, ResourceExhausted, Unavailable
from pyxen.xend.agent_frames import PADDING, Frame, Frames
from pyxen.xend.linked import open_link

_READ = 1 << 16
_SIGHUP = 1
_ASK_AGAIN_S = 2.0
_MOST_IDS = 1 << 16
_PIECE = 1 << 14
"""Bytes of input in one frame: the rest of one that is cut off must be made up for."""


class Refused(Exception):
    """The guest's kernel said no; ``errno`` is Linux'."""

    def __init__(self, errno: int) -> None:
        super().__init__(f"errno {errno}")
        self.errno = errno


class Command:
    """A command that runs, or a file that is read or written. Made by :meth:`Link.begin`."""

    def __init__(self, link: Link, number: int) -> None:
        self._link = link
        self._id = number
        self._changed = asyncio.Event()
        self._output: deque[tuple[Stream, bytes]] = deque()
        self._kept = [0, 0, 0]
        self._window = STDIN_WINDOW
        self._abandoned = False
        self.started: bytes | None = None
        """The payload of STARTED."""
        self.wait_status: int | None = None
        """What wait(2) said, once it has ended."""
        self.refusal: int | None = None
        """The error that it could not start with, or has failed with."""

    async def output(self) -> tuple[Stream, bytes] | None:
        """The next piece of output (an empty one: that stream's end); None when all has ended.

        Raises Refused if it failed, Unavailable if the guest has gone.
        """
        while not self._output:
            if self.refusal is not None:
                raise Refused(self.refusal)
            if self.wait_status is not None:
                return None
            await self._wait()
        stream, data = self._output.popleft()
        self._kept[stream] -= len(data)
        if data and self.wait_status is None and self.refusal is None:
            await self._link.send(Frame(Kind.ACK, stream, self._id, len(data).to_bytes(4, "little")))
        return stream, data

    async def write(self, data: bytes) -> None:
        """Give it input, as fast as it takes it; what comes after its end is thrown away."""
        view = memoryview(data)
        while view and not self.over:
            if self._window == 0:
                await self._wait()
                continue
            piece = view[: min(self._window, _PIECE)]
            self._window -= len(piece)
            view = view[len(piece) :]
            await self._link.send(Frame(Kind.DATA, Stream.IN, self._id, bytes(piece)))

    async def end_input(self) -> None:
        await self._tell(Frame(Kind.DATA, Stream.IN, self._id))

    async def signal(self, number: int) -> None:
        await self._tell(Frame(Kind.SIGNAL, 0, self._id, bytes([number])))

    async def resize(self, rows: int, columns: int) -> None:
        await self._tell(Frame(Kind.RESIZE, 0, self._id, rows.to_bytes(2, "little") + columns.to_bytes(2, "little")))

    async def abandon(self) -> None:
        """Nobody is interested any more: hang up, and let what it still says go."""
        self._abandoned = True
        with contextlib.suppress(PyxenError):
            await self.signal(_SIGHUP)
            await self.end_input()
            while self._output and not self.over:
                await self.output()

    @property
    def over(self) -> bool:
        return self.wait_status is not None or self.refusal is not None

    async def until_started(self) -> bytes:
        """The payload of STARTED. Raises Refused."""
        while self.started is None:
            if self.refusal is not None:
                raise Refused(self.refusal)
            await self._wait()
        return self.started

    def take(self, frame: Frame) -> Frame | None:
        """A frame about it has come; returns what is to be answered. Raises EngineError if it breaks the rules."""
        match frame.kind:
            case Kind.STARTED if len(frame.payload) == 16:
                self.started = frame.payload
            case Kind.DATA if frame.stream in (Stream.OUT, Stream.ERR):
                if self._abandoned:
                    return Frame(Kind.ACK, frame.stream, self._id, len(frame.payload).to_bytes(4, "little"))
                self._kept[frame.stream] += len(frame.payload)
                if self._kept[frame.stream] > OUTPUT_WINDOW:
                    raise EngineError("the guest's agent sent more than it may")
                self._output.append((Stream(frame.stream), frame.payload))
            case Kind.ACK:
                self._window = min(STDIN_WINDOW, self._window + frame.number)
            case Kind.EXIT:
                self.wait_status = frame.number & 0xFFFF
            case Kind.RESULT:
                self.refusal = frame.number
        self._changed.set()
        return None

    def wake(self) -> None:
        """Something has changed for all commands."""
        self._changed.set()

    async def _tell(self, frame: Frame) -> None:
        if not self.over:
            await self._link.send(frame)

    async def _wait(self) -> None:
        self._link.check()
        self._changed.clear()
        await self._changed.wait()
        self._link.check(unless=self.over or bool(self._output))


class Link:
    """The connection. ``open`` makes one."""

    def __init__(self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._name = name
        self._reader = reader
        self._writer = writer
        self._frames = Frames(b"")
        self._commands: dict[int, Command] = {}
        self._next_id = 0
        self._problem: PyxenError | None = None
        self._greeted = asyncio.Event()
        self.on_gone: Callable[[], None] = lambda: None
        """Called when the conversation has ended."""
        self._listening = asyncio.create_task(self._listen())

    @classmethod
    async def open(
        cls, name: str, connection: socket.socket, timeout_s: float | None, *, ends_frames: bool = False
    ) -> Link:
        """Greet the agent of domain ``name`` over a connected socket. Raises TimeoutError if none answers in time.

        ``ends_frames``: the agent is not left waiting for the rest of what an earlier xend began to say.
        """
        padding = b"" if ends_frames else PADDING
        return await open_link(connection, partial(cls, name), lambda link: link._greet(padding), timeout_s)

    @property
    def broken(self) -> bool:
        return self._problem is not None

    async def begin(self, kind: Kind, stream: int, payload: bytes) -> Command:
        """Start a command or open a file; returns when it has started.

        Raises Refused, InvalidRequest if the payload is too long, ResourceExhausted if too many run.
        """
        if len(payload) > MOST_PAYLOAD:
            raise InvalidRequest(f"a command, its arguments and environment may have {MOST_PAYLOAD} bytes at most")
        command = self._new()
        try:
            await self.send(Frame(kind, stream, command._id, payload))
            await command.until_started()
        except asyncio.CancelledError:
            await command.abandon()
            raise
        return command

    async def order(self, kind: Kind, payload: bytes) -> None:
        """Have something done that is answered by RESULT. Raises Refused."""
        command = self._new()
        await self.send(Frame(kind, 0, command._id, payload))
        try:
            await command.until_started()
        except Refused as result:
            if result.errno:
                raise

    async def send(self, frame: Frame) -> None:
        """Raises Unavailable if the agent has gone."""
        self.check()
        try:
            self._writer.write(frame.pack())
            await self._writer.drain()
        except OSError as error:
            self._break(Unavailable(f"the agent of '{self._name}' has gone: {error.strerror or error}"))
            self.check()

    def check(self, *, unless: bool = False) -> None:
        """Raises what has ended the conversation."""
        if self._problem is not None and not unless:
            raise self._problem

    def close(self) -> None:
        self._break(Unavailable(f"the agent of '{self._name}' has been let go"))
        self._listening.cancel()

    def _new(self) -> Command:
        self.check()
        if len(self._commands) >= MOST_COMMANDS:
            raise ResourceExhausted(
                f"{MOST_COMMANDS} commands and copies run in '{self._name}' already", hint="Wait until one has ended."
            )
        while (number := self._next_id) in self._commands:
            self._next_id = (number + 1) % _MOST_IDS
        self._next_id = (number + 1) % _MOST_IDS
        command = self._commands[number] = Command(self, number)
        return command

    async def _greet(self, padding: bytes) -> None:
        """Until it answers: it may not be there yet, or still be reading what an earlier xend began to say."""
        first, wait_s = True, _ASK_AGAIN_S
        while not self._greeted.is_set():
            # Letters: a console that is not the agent's yet takes others for orders to itself.
            nonce = secrets.token_hex(NONCE_SIZE // 2).encode()
            self._frames.expect(nonce)
            self._writer.write((b"" if first else padding) + Frame(Kind.HELLO, payload=nonce).pack())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._greeted.wait()
            first, wait_s = False, wait_s * 2
        self.check()

    async def _listen(self) -> None:
        try:
            while data := await self._reader.read(_READ):
                for frame in self._frames.feed(data):
                    answer = self._take(frame)
                    if answer is not None:
                        await self.send(answer)
                if self._frames.greeted:
                    self._greeted.set()
            self._break(Unavailable(f"the agent of '{self._name}' has gone"))
        except PyxenError as error:
            self._break(error)
        except OSError as error:
            self._break(Unavailable(f"the agent of '{self._name}' has gone: {error.strerror or error}"))

    def _take(self, frame: Frame) -> Frame | None:
        command = self._commands.get(frame.id)
        if command is None:
            return None
        if frame.kind in (Kind.EXIT, Kind.RESULT):
            del self._commands[frame.id]
        return command.take(frame)

    def _break(self, problem: PyxenError) -> None:
        if self._problem is None:
            self._problem = problem
            self._writer.transport.abort()  # what is still to be sent may never be taken
            self.on_gone()
        self._greeted.set()
        for command in self._commands.values():
            command.wake()
        self._commands.clear()

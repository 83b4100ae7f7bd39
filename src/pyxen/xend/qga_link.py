"""A conversation with QEMU's guest agent in one guest: a question, its answer, then the next."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import secrets
import socket
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import msgspec

from pyxen.abi.qga import DELIMITER
from pyxen.errors import EngineError, InvalidRequest, PyxenError, Unavailable
from pyxen.xend.agent_words import ENV
from pyxen.xend.linked import open_link
from pyxen.xend.qga_lines import MOST_LINE, Answers

ANSWER_S: Final = 10.0
MOST_STATUS: Final = 24 << 20
"""Bytes of the answer that has a command's whole output, base64-encoded."""
_READ: Final = 1 << 16
_ASK_AGAIN_S: Final = 2.0
_LOOK_S, _LONGEST_LOOK_S = 0.02, 0.5
_NO_COMMAND = ("CommandNotFound", "CommandDisabled")


class QgaError(Exception):
    """The agent said no. ``unknown``: it doesn't have the command, or may not carry it out."""

    def __init__(self, words: str, kind: str = "") -> None:
        super().__init__(words)
        self.words = words
        self.unknown = kind in _NO_COMMAND or "has been disabled" in words


class QgaLink:
    """The connection. ``open`` makes one."""

    def __init__(self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.name = name
        self._reader = reader
        self._writer = writer
        self._answers = Answers()
        self._turn = asyncio.Lock()
        self._number = 0
        self._problem: PyxenError | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self.on_gone: Callable[[], None] = lambda: None

    @classmethod
    async def open(cls, name: str, connection: socket.socket, timeout_s: float | None) -> QgaLink:
        """Greet the agent of domain ``name`` over a connected socket. Raises TimeoutError if none answers in time."""
        return await open_link(connection, partial(cls, name), cls._greet, timeout_s)

    @property
    def broken(self) -> bool:
        return self._problem is not None

    def close(self) -> None:
        self._break(Unavailable(f"the agent of '{self.name}' has been let go"))

    async def ask(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        *,
        timeout_s: float | None = ANSWER_S,
        most: int = MOST_LINE,
    ) -> Any:
        """Have one command carried out; returns its answer, of at most ``most`` bytes.

        Raises QgaError if the agent refuses, Unavailable if it doesn't answer (in time: the conversation is over then),
        EngineError if it answers nonsense. A caller that is cancelled leaves the rest to a task.
        """
        task = asyncio.create_task(self._exchange(command, arguments, most))
        self._tasks.add(task)
        task.add_done_callback(self._done)
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(task)
        except TimeoutError:
            self._break(Unavailable(f"the agent of '{self.name}' did not answer {command} within {timeout_s:g} s"))
            task.cancel()
            raise self._problem or Unavailable(f"the agent of '{self.name}' has gone") from None

    async def tell(self, command: str, arguments: Mapping[str, object]) -> None:
        """Have something done that has no answer if all goes well."""
        async with self._turn:
            await self._send(command, arguments)

    async def run(
        self, argv: Sequence[str], stdin: bytes = b"", *, timeout_s: float = ANSWER_S
    ) -> tuple[int, dict[str, Any]]:
        """Run a short command; wait(2)'s status, and the agent's whole answer. Raises as ``ask``."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self.until_ended(await self.start(argv, ENV, stdin))
        except TimeoutError:
            raise Unavailable(f"{argv[0]} has not ended in '{self.name}' within {timeout_s:g} s") from None

    async def start(self, argv: Sequence[str], env: Mapping[str, str], stdin: bytes) -> int:
        """Start a command; its process id. Raises as ``ask``."""
        started = await self.ask(
            "guest-exec",
            {
                "path": argv[0],
                "arg": list(argv[1:]),
                "env": [f"{key}={value}" for key, value in env.items()],
                "input-data": base64.b64encode(stdin).decode(),
                "capture-output": True,
            },
        )
        return self.number(started, "pid")

    async def until_ended(self, pid: int) -> tuple[int, dict[str, Any]]:
        """Wait for a command's end, however long; the agent only says so when it is asked."""
        wait_s = _LOOK_S
        while True:
            found = await self.ask("guest-exec-status", {"pid": pid}, timeout_s=None, most=MOST_STATUS)
            if not isinstance(found, dict):
                raise self.nonsense("guest-exec-status")
            if found.get("exited") is True:
                if isinstance(signal := found.get("signal"), int):
                    return signal & 0x7F, found
                return (self.number(found, "exitcode") & 0xFF) << 8, found
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 1.5, _LONGEST_LOOK_S)

    def number(self, answer: object, key: str) -> int:
        """A number in an answer, or (``key`` empty) the answer. Raises EngineError if it is none."""
        value = answer.get(key) if isinstance(answer, dict) else answer if not key else None
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.nonsense(key or "a question")
        return value

    def data(self, answer: object, key: str) -> bytes:
        """Bytes in an answer, none if they aren't there. Raises EngineError."""
        try:
            return base64.b64decode(answer.get(key, "") if isinstance(answer, dict) else None, validate=True)  # type: ignore[arg-type]
        except (TypeError, ValueError, binascii.Error):
            raise self.nonsense(key) from None

    def nonsense(self, what: str) -> EngineError:
        return EngineError(f"the agent of '{self.name}' answered {what} with what makes no sense")

    async def _exchange(self, command: str, arguments: Mapping[str, object] | None, most: int) -> Any:
        async with self._turn:
            number = await self._send(command, arguments)
            self._answers.most = most
            try:
                while True:
                    for answer in self._answers.feed(await self._read()):
                        if answer.id is None or answer.id == number:
                            self._answers.most = MOST_LINE
                            if answer.error is not None:
                                raise QgaError(answer.error, answer.kind)
                            return answer.value
                        if not isinstance(answer.id, int) or answer.id > number:
                            raise EngineError("the guest's agent answered what it was not asked")
            except PyxenError as error:
                self._break(error)
                raise

    async def _greet(self) -> None:
        """Until it answers: it may not be there yet, or still be reading what an earlier xend began to say."""
        wait_s = _ASK_AGAIN_S
        while True:
            number = secrets.randbits(48)
            self._answers.expect(number)
            request = {"execute": "guest-sync-delimited", "arguments": {"id": number}}
            self._writer.write(DELIMITER + msgspec.json.encode(request) + b"\n")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    while not self._answers.synced:
                        self._answers.feed(await self._read())
                    return
            wait_s *= 2

    async def _send(self, command: str, arguments: Mapping[str, object] | None) -> int:
        self._check()
        self._number += 1
        request = {"execute": command, "arguments": arguments or {}, "id": self._number}
        try:
            self._writer.write(msgspec.json.encode(request) + b"\n")
        except UnicodeEncodeError:
            raise InvalidRequest("QEMU's guest agent takes words of UTF-8 only") from None
        try:
            await self._writer.drain()
        except OSError as error:
            self._break(Unavailable(f"the agent of '{self.name}' has gone: {error.strerror or error}"))
            self._check()
        return self._number

    async def _read(self) -> bytes:
        try:
            data = await self._reader.read(_READ)
        except OSError as error:
            raise Unavailable(f"the agent of '{self.name}' has gone: {error.strerror or error}") from None
        if not data:
            self._check()
            raise Unavailable(f"the agent of '{self.name}' has gone")
        return data

    def _check(self) -> None:
        if self._problem is not None:
            raise self._problem

    def _break(self, problem: PyxenError) -> None:
        if self._problem is None:
            self._problem = problem
            self._writer.transport.abort()
            self.on_gone()

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # its caller may have gone

"""The real agent, as a process of this machine with a socket for its port; and one that only pretends."""

from __future__ import annotations

import asyncio
import atexit
import functools
import shutil
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from pyxen.abi.agent import VERSION, Kind
from pyxen.image.native import agent, compiler
from pyxen.xend.agent_contract import GuestCommand
from pyxen.xend.agent_frames import GREETING, HEADER, Frame
from pyxen.xend.agent_link import Link


@functools.cache
def program() -> str:
    """The agent's path, compiled once."""
    folder = Path(tempfile.mkdtemp(prefix="pyxen-agent-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = folder / "agent"
    path.write_bytes(compiler.build(agent.main))
    path.chmod(0o755)
    return str(path)


def start(port: socket.socket) -> subprocess.Popen[bytes]:
    """An agent on our end of a connection, which it takes over. It ends when the other end is closed."""
    # As in a guest: none of the signals is ignored, whoever has started the tests.
    default = ["env", "--default-signal", program(), "-"]
    with port:
        return subprocess.Popen(default, stdin=port.fileno(), stdout=subprocess.DEVNULL, cwd="/")


def start_at(terminal: str) -> subprocess.Popen[bytes]:
    """An agent on a terminal, as on Xen's console."""
    return subprocess.Popen(["env", "--default-signal", program(), terminal], stdin=subprocess.DEVNULL, cwd="/")


@asynccontextmanager
async def linked() -> AsyncIterator[tuple[Link, subprocess.Popen[bytes]]]:
    """A conversation with an agent of its own, which must end by itself afterwards."""
    host, guest = socket.socketpair()
    host.setblocking(False)
    process = start(guest)
    try:
        link = await Link.open("web", host, 60)
        yield link, process
        link.close()
        assert await asyncio.to_thread(process.wait, 60) == 0
    finally:
        process.kill()
        process.wait()


async def collect(command: GuestCommand, stdin: bytes = b"") -> tuple[int, bytes, bytes]:
    """Give it its input while its output is taken; the status that wait has, and both outputs."""

    async def feed() -> None:
        await command.write(stdin)
        await command.end_input()

    feeding = asyncio.create_task(feed())
    output = {1: b"", 2: b""}
    while (piece := await command.output()) is not None:
        output[piece[0]] += piece[1]
    await feeding
    assert command.wait_status is not None
    return command.wait_status, output[1], output[2]


async def until(condition: Callable[[], bool]) -> None:
    """Return when something that tells nobody has come true."""
    for _ in range(6000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("not within a minute")


async def settle() -> None:
    """Let what was closed go; the loop ends with the test."""
    for _ in range(3):
        await asyncio.sleep(0)


class Pretender:
    """Answers RESULT with ``errno`` to whatever it is told, and keeps it."""

    def __init__(self, errno: int = 0) -> None:
        self.errno = errno
        self.gone = False
        """Its caller has hung up."""
        self.frames: list[Frame] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while header := await reader.readexactly(HEADER.size):
                kind, stream, number, length = HEADER.unpack(header)
                payload = await reader.readexactly(length)
                self.frames.append(Frame(Kind(kind), stream, number, payload))
                if kind == Kind.HELLO:
                    answer = Frame(Kind.HELLO, payload=payload + GREETING.pack(VERSION, 0))
                else:
                    answer = Frame(Kind.RESULT, id=number, payload=self.errno.to_bytes(4, "little"))
                writer.write(answer.pack())
        except asyncio.IncompleteReadError:
            writer.transport.abort()
            self.gone = True

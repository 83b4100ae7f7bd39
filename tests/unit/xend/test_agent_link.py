"""Commands and files by the real agent, which runs here as a process like any other."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from pyxen.abi.agent import EXEC_TTY, MOST_COMMANDS, OUTPUT_WINDOW, Kind, Stream
from pyxen.errors import EngineError, InvalidRequest, ResourceExhausted, Unavailable
from pyxen.xend import agent_link
from pyxen.xend.agent_frames import PADDING, Frame, exec_payload
from pyxen.xend.agent_link import Command, Link, Refused
from tests.unit.xend.agents import collect, linked, settle, start, until

pytestmark = pytest.mark.anyio
ENV = {"PATH": os.environ["PATH"]}
BYTES = bytes(range(256)) * 4096


@pytest.fixture(autouse=True)
async def closed(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """Links that a test leaves open, or that are still closing at its end, are gone before its loop is."""
    made: list[Link] = []
    original = Link.__init__

    def init(self: Link, *args: Any) -> None:
        original(self, *args)
        made.append(self)

    monkeypatch.setattr(Link, "__init__", init)
    yield
    for link in made:
        link.close()
    await settle()


async def begin(link: Link, *argv: str, cwd: str = "/", flags: int = 0, env: dict[str, str] | None = None) -> Command:
    payload = exec_payload(list(argv), ENV if env is None else env, cwd, flags=flags, rows=30, columns=100)
    return await link.begin(Kind.EXEC, 0, payload)


async def test_a_command_has_its_arguments_environment_folder_and_streams(tmp_path: Path) -> None:
    async with linked() as (link, _):
        script = 'pwd; echo "$COLOUR $1"; echo oops >&2; exit 3'
        command = await begin(
            link, "sh", "-c", script, "sh", "a b", cwd=str(tmp_path), env={**ENV, "COLOUR": "r\u00f6t"}
        )
        assert await collect(command) == (3 << 8, f"{tmp_path}\nr\u00f6t a b\n".encode(), b"oops\n")
        assert await collect(await begin(link, "sh", "-c", "kill -9 $$")) == (signal.SIGKILL, b"", b"")


async def test_bytes_pass_unchanged_both_ways() -> None:
    async with linked() as (link, _):
        assert await collect(await begin(link, "cat"), BYTES) == (0, BYTES, b"")
        # What reads no more of its input does not keep the host from sending it.
        assert await collect(await begin(link, "head", "-c", "3"), BYTES) == (0, BYTES[:3], b"")


async def test_many_run_at_once_and_no_more_than_that() -> None:
    async with linked() as (link, _):
        commands = [
            await begin(link, "sh", "-c", f"cat; echo {number} >&2; exit {number}") for number in range(MOST_COMMANDS)
        ]
        with pytest.raises(ResourceExhausted, match="run in 'web' already"):
            await begin(link, "true")
        results = await asyncio.gather(*(collect(command, BYTES[:200_000]) for command in commands))
        assert results == [(n << 8, BYTES[:200_000], f"{n}\n".encode()) for n in range(MOST_COMMANDS)]
        assert await collect(await begin(link, "echo", "room again")) == (0, b"room again\n", b"")


async def test_a_silent_reader_holds_up_its_own_command_only() -> None:
    async with linked() as (link, _):
        flood = await begin(link, "cat", "/dev/zero")
        await collect(await begin(link, "true"))
        await until(lambda: sum(flood._kept) == OUTPUT_WINDOW)
        assert await collect(await begin(link, "echo", "hello")) == (0, b"hello\n", b"")
        assert sum(flood._kept) == OUTPUT_WINDOW
        await flood.abandon()
        await until(lambda: flood.over)
        assert flood.wait_status == signal.SIGHUP


async def test_what_cannot_be_started_says_why(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no program")
    cases = [
        (["no-such-command"], "/", errno.ENOENT),
        ([str(tmp_path / "text")], "/", errno.EACCES),
        (["true"], str(tmp_path / "nowhere"), errno.ENOENT),
    ]
    async with linked() as (link, _):
        for argv, cwd, expected in cases:
            with pytest.raises(Refused) as caught:
                await begin(link, *argv, cwd=cwd)
            assert caught.value.errno == expected
        with pytest.raises(InvalidRequest, match="bytes at most"):
            await begin(link, "echo", "x" * 70_000)
        for payload in (b"", bytes(16), struct.pack("<IHHII", 0, 0, 0, 2, 0) + b"/\0true\0", b"\xff" * 40):
            with pytest.raises(Refused) as caught:
                await link.begin(Kind.EXEC, 0, payload)
            assert caught.value.errno == errno.EINVAL
        assert await collect(await begin(link, "true")) == (0, b"", b"")


async def test_signals_go_to_the_whole_group_and_children_left_behind_hold_up_nothing() -> None:
    async with linked() as (link, _):
        command = await begin(link, "sh", "-c", "sleep 1000 & wait")
        await command.signal(signal.SIGTERM)
        assert (await collect(command))[0] == signal.SIGTERM
        assert await collect(await begin(link, "sh", "-c", "sleep 5 & echo started")) == (0, b"started\n", b"")


async def test_a_terminal() -> None:
    async with linked() as (link, _):
        command = await begin(link, "sh", "-c", "test -t 0 && stty size; read x; stty size; echo $x", flags=EXEC_TTY)
        output = b""
        while b"30 100" not in output:
            piece = await command.output()
            assert piece is not None
            output += piece[1]
        await command.resize(40, 90)
        await command.write(b"typed\n")
        while (piece := await command.output()) is not None:
            output += piece[1]
        assert output.split() == [b"30", b"100", b"typed", b"40", b"90", b"typed"]
        command = await begin(link, "cat", flags=EXEC_TTY)
        assert await collect(command) == (0, b"", b""), "the end of the input is Ctrl-D typed"


async def test_files(tmp_path: Path) -> None:
    async with linked() as (link, _):

        async def opened(stream: Stream, path: Path | str) -> Command:
            return await link.begin(Kind.OPEN, stream, struct.pack("<I", 0o640) + os.fsencode(path) + b"\0")

        written = await opened(Stream.IN, tmp_path / "file")
        assert await collect(written, BYTES) == (0, b"", b"")
        assert (tmp_path / "file").read_bytes() == BYTES
        assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
        read = await opened(Stream.OUT, tmp_path / "file")
        assert struct.unpack("<IIQ", read.started or b"") == (0o100640, 0, len(BYTES))
        assert await collect(read) == (0, BYTES, b"")
        for stream, path, expected in (
            (Stream.OUT, tmp_path / "none", errno.ENOENT),
            (Stream.OUT, tmp_path, errno.EISDIR),
            (Stream.IN, tmp_path, errno.EISDIR),
        ):
            with pytest.raises(Refused) as caught:
                await opened(stream, path)
            assert caught.value.errno == expected
        full = await opened(Stream.IN, "/dev/full")
        with pytest.raises(Refused) as caught:
            await collect(full, b"x")
        assert caught.value.errno == errno.ENOSPC


async def test_a_second_host_hangs_up_on_what_the_first_had_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What xend's death leaves: half a frame, and commands that nobody listens to any more."""
    monkeypatch.setattr(agent_link, "_ASK_AGAIN_S", 0.1)
    host, guest = socket.socketpair()
    host.setblocking(False)
    again = host.dup()
    process = start(guest)
    try:
        first = await Link.open("web", host, 60)
        mark = tmp_path / "mark"
        waiting = await begin(
            first,
            "sh",
            "-c",
            f"trap 'echo hung up >{mark}; exit' HUP; echo ready; exec 2>/dev/null; while :; do sleep 0.05; done",
        )
        assert await waiting.output() == (Stream.OUT, b"ready\n")
        flood = await begin(first, "yes")
        assert await flood.output() is not None
        first.close()
        again.sendall(Frame(Kind.EXEC, payload=bytes(60_000)).pack()[:100])
        second = await Link.open("web", again, 60)
        assert await collect(await begin(second, "echo", "clean")) == (0, b"clean\n", b"")
        await until(lambda: mark.exists())
        second.close()
        await settle()
    finally:
        process.kill()
        process.wait()


async def test_nonsense_does_not_confuse_the_agent() -> None:
    host, guest = socket.socketpair()
    process = start(guest)
    try:
        host.sendall(os.urandom(100_000) + b"\xff" * 100 + PADDING)
        host.setblocking(False)
        link = await Link.open("web", host, 60)
        assert await collect(await begin(link, "echo", "still here")) == (0, b"still here\n", b"")
        link.close()
        assert await asyncio.to_thread(process.wait, 60) == 0
    finally:
        process.kill()
        process.wait()


async def test_an_agent_that_dies_ends_all_with_an_error() -> None:
    host, guest = socket.socketpair()
    host.setblocking(False)
    process = start(guest)
    link = await Link.open("web", host, 60)
    command = await begin(link, "sleep", "60")
    process.kill()
    process.wait()
    with pytest.raises(Unavailable, match="agent of 'web'"):
        await collect(command)
    with pytest.raises(Unavailable):
        await begin(link, "true")
    await settle()


async def test_an_agent_that_is_told_to_end_does_so_and_hangs_up_on_its_commands() -> None:
    """Or it would hold up the guest's shutdown."""
    async with linked() as (link, process):
        command = await begin(link, "sleep", "600")
        pid = int.from_bytes((command.started or b"")[:4], "little")
        process.terminate()
        assert await asyncio.to_thread(process.wait, 60) == 0
        await until(lambda: not Path(f"/proc/{pid}/cwd").exists())


@pytest.mark.parametrize("sent", [b"\xff" * 8, Frame(Kind.DATA, 1, 0, bytes(60_000)).pack() * 5])
async def test_a_guest_that_breaks_the_rules_is_hung_up_on(sent: bytes) -> None:
    host, guest = socket.socketpair()
    for end in (host, guest):
        end.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=guest)

    async def pretend() -> None:
        hello = await reader.readexactly(24)
        writer.write(Frame(Kind.HELLO, payload=hello[8:] + struct.pack("<II", 1, 0)).pack())
        await reader.readexactly(8)
        writer.write(Frame(Kind.STARTED, 0, 0, bytes(16)).pack() + sent)

    pretending = asyncio.create_task(pretend())
    link = await Link.open("web", host, 60)
    with pytest.raises(EngineError):
        command = await begin(link, "anything")
        await until(lambda: link.broken)
        while await command.output() is not None:
            pass
    await pretending
    writer.transport.abort()
    await settle()


async def test_nobody_answers() -> None:
    host, guest = socket.socketpair()
    host.setblocking(False)
    with pytest.raises(TimeoutError):
        await Link.open("web", host, 0.05)
    guest.close()
    await settle()

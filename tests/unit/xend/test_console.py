"""Consoles, over real files, FIFOs and inotify."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pyxen.engine.inotify import Inotify
from pyxen.errors import Conflict
from pyxen.xend import console as module
from pyxen.xend.console import KEPT_BYTES, REPLAY_BYTES, Console, ConsoleView

pytestmark = pytest.mark.anyio
MIB = 1024 * 1024


class Guest:
    """Stands for the domain's process: appends to the log, reads what is typed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "console.log").touch()
        os.mkfifo(folder / "console.in")
        self.input = os.open(folder / "console.in", os.O_RDWR | os.O_NONBLOCK)

    def prints(self, data: bytes) -> None:
        with (self.folder / "console.log").open("ab") as file:
            file.write(data)

    async def reads(self, count: int) -> bytes:
        got = b""
        while len(got) < count:
            try:
                got += os.read(self.input, 65536)
            except BlockingIOError:
                await asyncio.sleep(0.001)
        return got

    def exit(self) -> None:
        if self.input >= 0:
            os.close(self.input)
            self.input = -1


@pytest.fixture
def guest(tmp_path: Path) -> Guest:
    return Guest(tmp_path)


@pytest.fixture
async def inotify() -> AsyncIterator[Inotify]:
    inotify = Inotify()
    yield inotify
    inotify.close()


@pytest.fixture
async def console(guest: Guest, inotify: Inotify) -> AsyncIterator[Console]:
    console = Console(guest.folder, inotify)
    yield console
    console.close("test ended")
    guest.exit()


async def drain(view: ConsoleView) -> bytes:
    return b"".join([data async for _, data in view])


async def read_until(view: ConsoleView, size: int) -> bytes:
    got = b""
    while len(got) < size:
        got += (await anext(view))[1]
    return got


async def test_output_is_replayed_then_live(guest: Guest, console: Console) -> None:
    guest.prints(b"before ")
    view = console.attach()
    assert await anext(view) == (0, b"before ")
    waiting = asyncio.ensure_future(anext(view))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    guest.prints(b"after")
    assert await waiting == (7, b"after")
    assert console.size == 12
    view.close()


async def test_the_replay_is_bounded_unless_asked(guest: Guest, console: Console) -> None:
    guest.prints(b"x" * 200_000)
    assert console.attach().offset == 200_000 - REPLAY_BYTES
    assert console.attach(after=5).offset == 5
    assert console.attach(after=10**9).offset == 200_000


async def test_every_viewer_sees_all_of_it(guest: Guest, console: Console) -> None:
    views = [console.attach(after=0) for _ in range(3)]
    tasks = [asyncio.create_task(drain(view)) for view in views]
    expected = b""
    for number in range(50):
        line = b"line %d\r\n" % number
        expected += line
        guest.prints(line)
        await asyncio.sleep(0)
    console.close("poweroff")
    assert await asyncio.gather(*tasks) == [expected] * 3
    assert [view.reason for view in views] == ["poweroff"] * 3


async def test_closing_lets_a_view_read_what_is_left(guest: Guest, console: Console) -> None:
    view = console.attach()
    guest.prints(b"last words" * 20_000)
    console.close("crash")
    (guest.folder / "console.log").unlink()
    assert len(await drain(view)) == 200_000
    assert view.reason == "crash"
    assert console.size == 200_000
    assert console.tail(10) == b""


async def test_a_view_after_the_end_ends_at_once(guest: Guest, console: Console) -> None:
    guest.prints(b"gone")
    console.close("destroyed")
    assert await drain(console.attach()) == b""


async def test_old_output_is_given_back(guest: Guest, console: Console) -> None:
    log = guest.folder / "console.log"
    for number in range(40):
        guest.prints(bytes([65 + number % 26]) * (MIB // 8))
        console.trim()
    assert console.size == log.stat().st_size == 5 * MIB
    if console.start == 0:
        pytest.skip("this file system has no holes: the file is kept whole")
    assert 5 * MIB - console.start >= KEPT_BYTES
    assert log.stat().st_blocks * 512 <= 3 * MIB
    assert b"\0" not in console.tail(2 * MIB)


async def test_a_slow_view_skips_what_is_gone(guest: Guest, console: Console) -> None:
    guest.prints(b"a" * MIB)
    view = console.attach(after=0)
    assert (await anext(view))[0] == 0
    guest.prints(b"b" * 4 * MIB)
    console.trim()
    offset, data = await anext(view)
    assert offset == max(console.start, 65536)
    assert b"\0" not in data


async def test_a_later_xend_knows_what_is_kept(guest: Guest, console: Console, inotify: Inotify) -> None:
    guest.prints(b"x" * 5 * MIB)
    console.trim()
    start = console.start
    console.close("xend stopped")
    adopted = Console(guest.folder, inotify)
    assert adopted.start == start
    view = adopted.attach(after=0)
    assert view.offset == start
    view.close()
    adopted.close("test ended")


async def test_without_holes_the_file_is_kept(guest: Guest, console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, offset: int, length: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(module, "punch", refuse)
    guest.prints(b"x" * 4 * MIB)
    console.trim()
    console.trim()
    assert console.start == 0
    assert len(await read_until(console.attach(after=0), 4 * MIB)) == 4 * MIB


async def test_typing_reaches_the_guest(guest: Guest, console: Console) -> None:
    await console.write(b"root\n")
    await console.write(b"")
    assert await guest.reads(5) == b"root\n"


async def test_much_typing_waits_for_the_guest_and_stays_in_order(guest: Guest, console: Console) -> None:
    fcntl.fcntl(guest.input, 1031, 4096)  # F_SETPIPE_SZ
    one, two = b"1" * 50_000, b"2" * 50_000
    writers = [asyncio.create_task(console.write(data)) for data in (one, two)]
    await asyncio.sleep(0.01)
    assert not any(writer.done() for writer in writers)
    assert await guest.reads(100_000) == one + two
    await asyncio.gather(*writers)


async def test_a_writer_that_gives_up_leaves_the_turn_to_others(guest: Guest, console: Console) -> None:
    fcntl.fcntl(guest.input, 1031, 4096)
    stuck = asyncio.create_task(console.write(b"x" * 10_000))
    await asyncio.sleep(0.01)
    stuck.cancel()
    await asyncio.wait((stuck,))
    assert await guest.reads(4096) == b"x" * 4096
    await console.write(b"next")
    assert await guest.reads(4) == b"next"


async def test_typing_to_nobody(guest: Guest, console: Console) -> None:
    guest.exit()
    with pytest.raises(Conflict, match="nobody reads"):
        await console.write(b"x")


async def test_typing_when_the_reader_dies(guest: Guest, console: Console) -> None:
    fcntl.fcntl(guest.input, 1031, 4096)
    stuck = asyncio.create_task(console.write(b"x" * 10_000))
    await asyncio.sleep(0.01)
    guest.exit()
    with pytest.raises(Conflict):
        await stuck


async def test_closing_ends_a_writer_that_waits(guest: Guest, console: Console) -> None:
    fcntl.fcntl(guest.input, 1031, 4096)
    stuck = asyncio.create_task(console.write(b"x" * 10_000))
    await asyncio.sleep(0.01)
    console.close("destroyed")
    with pytest.raises(Conflict):
        await stuck


async def test_no_console_there(tmp_path: Path, inotify: Inotify) -> None:
    with pytest.raises(Conflict, match="there is no console"):
        Console(tmp_path / "nowhere", inotify)


async def test_nothing_is_left_open(guest: Guest, inotify: Inotify) -> None:
    def mine() -> list[str]:
        found = []
        for number in os.listdir("/proc/self/fd"):
            try:
                target = os.readlink(f"/proc/self/fd/{number}")
            except FileNotFoundError:
                continue
            if target.startswith(str(guest.folder)):
                found.append(target)
        return found

    before = len(mine())
    console = Console(guest.folder, inotify)
    view = console.attach()
    await console.write(b"x")
    assert len(mine()) == before + 2
    console.close("test ended")
    assert len(mine()) == before + 1
    view.close()
    assert len(mine()) == before
    guest.exit()

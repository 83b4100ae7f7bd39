"""The stand-in engine keeps the contract: xend's tests lean on it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pyxen.api import ShutdownReason
from pyxen.config.model import DomainConfig
from pyxen.engine.contract import DomainSpec, RunningDomain, Stopped
from pyxen.engine.fake import FakeDomain, FakeEngine
from pyxen.engine.inotify import Inotify
from pyxen.engine.process import find
from pyxen.errors import Conflict, EngineError

pytestmark = pytest.mark.anyio


def make_spec(cmdline: str = "") -> DomainSpec:
    return DomainSpec(domid=7, uuid="0" * 8, config=DomainConfig(name="web"), cmdline=cmdline)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "7"
    path.mkdir()
    for name in ("console.log", "events"):
        (path / name).touch()
    os.mkfifo(path / "console.in")
    return path


@pytest.fixture
async def engine(directory: Path) -> AsyncIterator[FakeEngine]:
    inotify = Inotify()
    engine = FakeEngine(inotify=inotify)
    yield engine
    engine.reap(directory)
    inotify.close()
    assert find(directory) == []


async def stop_of(domain: RunningDomain) -> Stopped:
    future: asyncio.Future[Stopped] = asyncio.get_running_loop().create_future()
    domain.on_stopped(future.set_result)
    return await asyncio.wait_for(future, 20)


async def start(engine: FakeEngine, directory: Path, cmdline: str = "", *, paused: bool = False) -> FakeDomain:
    domain = await engine.start(make_spec(cmdline), directory, paused=paused)
    assert isinstance(domain, FakeDomain)
    return domain


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("poweroff", ShutdownReason.POWEROFF),
        ("reboot", ShutdownReason.REBOOT),
        ("crash", ShutdownReason.CRASH),
        ("exit", ShutdownReason.FAILED),
    ],
)
async def test_each_end_has_its_reason(engine: FakeEngine, directory: Path, word: str, reason: ShutdownReason) -> None:
    domain = await start(engine, directory)
    assert domain.stopped is None
    domain.control(word)
    stopped = await stop_of(domain)
    assert stopped.reason is reason
    assert stopped.detail == ("fake: told to exit" if word == "exit" else "")
    await domain.destroy()
    domain.close()


async def test_typed_lines_are_echoed_and_obeyed(engine: FakeEngine, directory: Path) -> None:
    domain = await start(engine, directory)
    (directory / "console.in").write_bytes(b"hello\npoweroff\n")
    assert (await stop_of(domain)).reason is ShutdownReason.POWEROFF
    assert (directory / "console.log").read_bytes() == b"fake domain web\r\nhello\r\npoweroff\r\n"
    domain.close()


async def test_destroy_waits_for_the_end(engine: FakeEngine, directory: Path) -> None:
    domain = await start(engine, directory)
    await domain.destroy()
    assert not domain.alive
    assert domain.stopped == Stopped(ShutdownReason.DESTROYED)
    await domain.destroy()
    with pytest.raises(Conflict):
        await domain.pause()
    domain.close()


async def test_pause_is_seen_and_kept(engine: FakeEngine, directory: Path) -> None:
    domain = await start(engine, directory, paused=True)
    assert domain.paused
    await domain.unpause()
    assert not domain.paused
    await domain.pause()
    domain.close()
    again = await engine.adopt(make_spec(), directory)
    assert again is not None and again.paused and again.info.accelerator == "fake"
    again.close()


async def test_adopting_tells_why_it_stopped_meanwhile(engine: FakeEngine, directory: Path) -> None:
    first = await start(engine, directory)
    pid = first.pid
    first.close()
    first.control("reboot")
    second = await engine.adopt(make_spec(), directory)
    assert second is not None and second.pid == pid
    assert (await stop_of(second)).reason is ShutdownReason.REBOOT
    await second.destroy()
    second.close()
    third = await engine.adopt(make_spec(), directory)
    assert third is not None and third.stopped == Stopped(ShutdownReason.REBOOT)
    third.close()


async def test_adopting_a_vanished_domain_gives_none(engine: FakeEngine, directory: Path, tmp_path: Path) -> None:
    domain = await start(engine, directory)
    os.kill(domain.pid, signal.SIGKILL)
    assert (await stop_of(domain)).reason is ShutdownReason.FAILED
    domain.close()
    assert await engine.adopt(make_spec(), directory) is None
    assert await engine.adopt(make_spec(), tmp_path / "gone") is None


async def test_a_failed_start_leaves_nothing(engine: FakeEngine, directory: Path) -> None:
    with pytest.raises(EngineError, match="no such machine"):
        await engine.start(make_spec("fake.fail"), directory, paused=False)
    assert find(directory) == []


async def test_reap_ends_a_stubborn_one(engine: FakeEngine, directory: Path) -> None:
    domain = await start(engine, directory, "fake.stubborn")
    engine.reap(directory)
    assert (await stop_of(domain)).reason is ShutdownReason.FAILED
    domain.close()

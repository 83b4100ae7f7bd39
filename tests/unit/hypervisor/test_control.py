"""Orders on control.sock, and the events that xend reads."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyxen.abi import sched
from pyxen.api import ShutdownReason
from pyxen.engine.events import EventLog
from pyxen.errors import Conflict
from pyxen.hypervisor.control import Control
from pyxen.hypervisor.events import Events
from pyxen.hypervisor.loop import Loop


def _refuse() -> None:
    raise Conflict("not now")


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """A socket whose loop runs in a thread."""
    loop = Loop()
    control = Control(
        tmp_path / "control.sock", loop, {"add": lambda a, b=0: {"sum": a + b}, "refuse": _refuse, "none": lambda: None}
    )
    thread = threading.Thread(target=loop.run)
    thread.start()
    yield tmp_path / "control.sock"
    loop.stop()
    thread.join()
    control.close()
    loop.close()
    assert not (tmp_path / "control.sock").exists()


def say(path: Path, *lines: bytes) -> list[dict[str, Any]]:
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(str(path))
        caller.sendall(b"".join(line + b"\n" for line in lines))
        file = caller.makefile("rb")
        answers = [json.loads(file.readline()) for _ in lines]
        file.close()
        return answers


def test_a_command_is_answered(path: Path) -> None:
    assert say(path, b'{"execute":"add","arguments":{"a":1,"b":2},"id":7}', b'{"execute":"none"}') == [
        {"return": {"sum": 3}, "id": 7},
        {"return": {}},
    ]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"nonsense", "not a command"),
        (b"[1]", "not a command"),
        (b'{"execute":"fly"}', "there is no command 'fly'"),
        (b'{"execute":["add"]}', "there is no command"),
        (b'{"execute":"add","arguments":[1]}', "there is no command"),
        (b'{"execute":"add","arguments":{"c":1}}', "command 'add': "),
        (b'{"execute":"add"}', "command 'add': "),
        (b'{"execute":"refuse"}', "not now"),
        (b"\xff\xfe", "not a command"),
        (b'{"\xc1":1}', "not a command"),
    ],
)
def test_what_is_no_good_command_is_told_so_and_the_next_one_is_answered(path: Path, line: bytes, words: str) -> None:
    answers = say(path, line, b'{"execute":"add","arguments":{"a":1}}')
    assert words in answers[0]["error"]["desc"]
    assert answers[1] == {"return": {"sum": 1}}


def test_callers_come_and_go(path: Path) -> None:
    for _ in range(20):
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(str(path))
            caller.sendall(b'{"execute":"add","arg')
    assert say(path, b'{"execute":"none"}') == [{"return": {}}]


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        (sched.SHUTDOWN_POWEROFF, ShutdownReason.POWEROFF),
        (sched.SHUTDOWN_REBOOT, ShutdownReason.REBOOT),
        (sched.SHUTDOWN_CRASH, ShutdownReason.CRASH),
        (sched.SHUTDOWN_WATCHDOG, ShutdownReason.WATCHDOG),
        (sched.SHUTDOWN_SOFT_RESET, ShutdownReason.REBOOT),
        (99, ShutdownReason.POWEROFF),
    ],
)
def test_xend_reads_how_the_guest_ended(tmp_path: Path, reason: int, expected: ShutdownReason) -> None:
    events = Events(tmp_path / "events")
    log = EventLog(tmp_path / "events")
    events.ready()
    events.resumed()
    fate = log.read()
    assert (fate.ready, fate.paused, fate.stopped) == (True, False, None)
    events.paused()
    assert log.read().paused
    events.guest_stopped(reason)
    events.destroyed()
    stopped = log.read().stopped
    assert stopped is not None
    assert stopped.reason is expected
    events.close()
    log.close()


def test_xend_reads_that_the_machine_failed(tmp_path: Path) -> None:
    events = Events(tmp_path / "events")
    log = EventLog(tmp_path / "events")
    events.failed()
    stopped = log.read().stopped
    assert stopped is not None
    assert stopped.reason is ShutdownReason.FAILED
    events.close()
    log.close()

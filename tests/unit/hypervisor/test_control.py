"""Orders on control.sock, and the events that xend reads."""

from __future__ import annotations

import errno
import gc
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyxen.abi import sched
from pyxen.api import ShutdownReason
from pyxen.engine.events import EventLog
from pyxen.errors import Conflict
from pyxen.hypervisor.control import Control, Later
from pyxen.hypervisor.events import Events
from pyxen.hypervisor.jail import Report
from pyxen.hypervisor.loop import Loop


def _refuse() -> None:
    raise Conflict("not now")


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """A socket whose loop runs in a thread."""
    loop = Loop()
    finish, done = threading.Event(), threading.Event()

    def wait() -> str:
        assert finish.wait(20)
        return "waited"

    def full() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    control = Control(
        tmp_path / "control.sock",
        loop,
        {
            "add": lambda a, b=0: {"sum": a + b},
            "refuse": _refuse,
            "none": lambda: None,
            "read": read_all,
            "wait": lambda: Later(wait, done.set),
            "wait-refused": lambda: Later(_refuse, done.set),
            "wait-full": lambda: Later(full, done.set),
            "finish": finish.set,
            "done": done.is_set,
        },
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


def read_all(fds: list[int]) -> str:
    return "".join(os.read(fd, 100).decode() for fd in fds)


def test_a_command_gets_the_descriptors_that_came_beside_its_line(path: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("contents")
    gc.collect()  # what other tests have left open must not be closed in between
    before = open_files()
    with (tmp_path / "file").open() as file, socket.socket(socket.AF_UNIX) as caller:
        caller.connect(str(path))
        answers = caller.makefile("rb")
        expected: list[tuple[bytes, dict[str, Any]]] = [
            (b'{"execute":"read"}\n', {"return": "contents"}),
            (b'{"execute":"none"}\n', {"error": {"code": "invalid-request"}}),
            (b"nonsense\n", {"error": {}}),
            (b'{"execute":"read","arguments":{"fds":[0]}}\n', {"error": {"code": "invalid-request"}}),
        ]
        for line, answer in expected:
            file.seek(0)
            caller.sendall(b'{"execute":"none"}\n')
            socket.send_fds(caller, [line[:9]], [file.fileno()])
            caller.sendall(line[9:])
            assert json.loads(answers.readline()) == {"return": {}}
            got = json.loads(answers.readline())
            assert got.keys() == answer.keys()
            assert answer.get("error", {}).items() <= got.get("error", {}).items()
            assert got.get("return") == answer.get("return")
        answers.close()
        socket.send_fds(caller, [b"half a line"], [file.fileno()])
    say(path, b'{"execute":"none"}')
    until = time.monotonic() + 20
    while open_files() != before and time.monotonic() < until:
        time.sleep(0.005)
    assert open_files() == before


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_what_takes_long_keeps_nobody_else_waiting(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as patient:
        patient.connect(str(path))
        answers = patient.makefile("rb")
        patient.sendall(b'{"execute":"wait","id":1}\n{"execute":"add","arguments":{"a":1}}\n')
        assert say(path, b'{"execute":"finish"}') == [{"return": {}}]
        assert json.loads(answers.readline()) == {"return": "waited", "id": 1}
        assert json.loads(answers.readline()) == {"return": {"sum": 1}}
        answers.close()
    assert say(path, b'{"execute":"done"}') == [{"return": True}]


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ("wait-refused", {"desc": "not now", "code": "conflict"}),
        ("wait-full", {"desc": "No space left on device", "code": "engine-failed"}),
    ],
)
def test_what_takes_long_may_fail(path: Path, command: str, error: dict[str, str]) -> None:
    assert say(path, json.dumps({"execute": command}).encode()) == [{"error": error}]
    assert say(path, b'{"execute":"done"}') == [{"return": True}]


def test_a_caller_that_leaves_does_not_end_what_it_asked_for(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(str(path))
        caller.sendall(b'{"execute":"wait"}\n')
        say(path, b'{"execute":"none"}')
    say(path, b'{"execute":"finish"}')
    until = time.monotonic() + 20
    while say(path, b'{"execute":"done"}') != [{"return": True}] and time.monotonic() < until:
        time.sleep(0.005)
    assert say(path, b'{"execute":"done"}') == [{"return": True}]


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
    events.ready(Report())
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

"""``xm run``: what is asked of xend, and what comes back."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyxen.agent_api import AgentEnded, AgentEvent, Running
from pyxen.config.model import EngineChoice
from pyxen.errors import NotFound
from pyxen.run_api import RunRequest
from tests.unit.xm.conftest import Xm
from tests.unit.xm.fake import FakeClient


class Done:
    """A command that has said its word and ended."""

    ended = AgentEnded(7)

    def __enter__(self) -> Done:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        yield 1, b"out\n"
        yield 2, b"err\n"

    def write(self, data: bytes) -> None: ...

    def end_input(self) -> None: ...


@pytest.fixture
def asked(fake: FakeClient, monkeypatch: pytest.MonkeyPatch) -> list[RunRequest]:
    requests: list[RunRequest] = []

    def sandbox(request: RunRequest, told: Callable[[AgentEvent], None]) -> Any:
        requests.append(request)
        if request.kernel == "none":
            raise NotFound("there is no kernel 'none'")
        told(AgentEvent(step="Unpacking the kernel"))
        gdb = "/run/gdb.sock" if request.gdb else None
        told(AgentEvent(running=Running(3, "run-1234", "6.1", gdb=gdb, symbols="/src/vmlinux")))
        return Done()

    monkeypatch.setattr(fake, "sandbox", sandbox, raising=False)
    return requests


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> dict[int, bytes]:
    """What went to the standard streams past Python's own."""
    found = {1: b"", 2: b""}

    def write_all(stream: int, data: bytes) -> None:
        found[stream] += data

    monkeypatch.setattr("pyxen.xm.executing.write_all", write_all)
    return found


def test_the_callers_surroundings_go_along(
    xm: Xm, asked: list[RunRequest], shown: dict[int, bytes], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/my/bin")
    (here / "tree").mkdir()
    done = xm("run", "--kernel", "tree", "--rw", ".", "--memory", "1G", "-e", "A=b", "--", "make", "-j2")
    assert (done.status, shown) == (7, {1: b"out\n", 2: b"err\n"})
    assert done.err == "Unpacking the kernel\n"
    (request,) = asked
    assert (request.command.argv, request.command.cwd, request.command.tty) == (["make", "-j2"], str(here), False)
    assert (request.command.env["PATH"], request.command.env["A"]) == ("/my/bin", "b")
    assert (request.kernel, request.rw, request.memory) == (str(here / "tree"), [str(here)], 1024)


def test_other_ways_to_say_it(
    xm: Xm, asked: list[RunRequest], shown: dict[int, bytes], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHELL", "/bin/zsh")
    xm("run", "--script", "a | b", "--engine", "qemu", "--kernel", "linux-image-rt-amd64")
    xm("run")
    script, shell = asked
    assert (script.command.argv, script.engine) == (["sh", "-c", "a | b"], EngineChoice.QEMU)
    assert script.kernel == "linux-image-rt-amd64"
    assert (shell.command.argv, shell.kernel) == (["/bin/zsh"], None)
    done = xm("run", "--gdb", "--", "true")
    assert "run-1234 waits for gdb: gdb /src/vmlinux -ex 'target remote /run/gdb.sock'\n" in done.err
    assert xm("run", "--script", "a", "--", "b").status == 2
    assert "no such folder" in xm("run", "--rw", "gone", "--", "b").err
    assert xm("run", "--kernel", "none", "--", "b").status == 1
    assert os.getcwd() == str(here)

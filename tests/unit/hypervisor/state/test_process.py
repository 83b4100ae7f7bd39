"""Whole processes of domains on any KVM: a guest of a few bytes suspends itself, is saved, goes on in another one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.unit.hypervisor.kvm.micro import needs_kvm
from tests.unit.hypervisor.state.guests import sleeper, writer

pytestmark = needs_kvm

_PATIENCE_S = 60.0


class _Process:
    """A domain's process in a folder of its own."""

    def __init__(self, here: Path, *, kernel: Path, domid: int, memory: int = 16, state: int | None = None) -> None:
        here.mkdir()
        self.here = here
        config = {"name": "inner", "memory": memory}
        spec = {"domid": domid, "uuid": str(uuid.UUID(int=9)), "config": config, "kernel": str(kernel)}
        (here / "domain.json").write_text(json.dumps(spec))
        words = [] if state is None else ["--state", str(state)]
        with (here / "stderr").open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pyxen.hypervisor", f"{here}/monitor", *words],
                stdout=stderr,
                stderr=stderr,
                pass_fds=[] if state is None else [state],
            )

    def text(self, name: str) -> str:
        path = self.here / name
        return path.read_text() if path.exists() else ""

    def wait(self, name: str, word: str, times: int = 1) -> None:
        """Until a file has the word in it so often."""
        end = time.monotonic() + _PATIENCE_S
        while self.text(name).count(word) < times:
            assert self.process.poll() is None, self.text("stderr")
            assert time.monotonic() < end, f"{word!r} never comes: {self.text(name)!r} {self.text('stderr')!r}"
            time.sleep(0.01)

    def order(self, command: str, fd: int | None = None, **arguments: object) -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(str(self.here / "control.sock"))
            line = json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n"
            socket.send_fds(connection, [line], [] if fd is None else [fd])
            answer: dict[str, Any] = json.loads(connection.makefile("rb").readline())
            return answer

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(_PATIENCE_S)


@contextmanager
def _running(here: Path, **more: Any) -> Iterator[_Process]:
    process = _Process(here, **more)
    try:
        yield process
    finally:
        process.end()


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state of a guest that has suspended itself, gone on where it was, and suspended itself again."""
    place = tmp_path_factory.mktemp("state")
    (place / "kernel").write_bytes(sleeper())
    with _running(place / "7", kernel=place / "kernel", domid=7) as domain:
        domain.wait("events", '"SUSPEND"')
        assert domain.order("withdraw") == {"return": {"expected": False}}
        assert domain.order("resume") == {"return": {}}
        domain.wait("events", '"SUSPEND"', 2)
        assert domain.text("console.log") == "resumed!\n"
        with (place / "saved").open("wb") as file:
            answer = domain.order("save-state", file.fileno())
        assert answer["return"]["size"] == (place / "saved").stat().st_size
        domain.order("resume")
        domain.wait("console.log", "resumed!\n", 2)
    return place / "saved"


@contextmanager
def _restored(state: Path, here: Path, **more: Any) -> Iterator[_Process]:
    fd = os.open(state, os.O_RDONLY)
    try:
        with _running(here, kernel=Path("/nonexistent"), domid=8, state=fd, **more) as domain:
            yield domain
    finally:
        os.close(fd)


def test_a_restored_guest_sees_0_and_can_be_saved_again(state: Path, tmp_path: Path) -> None:
    with _restored(state, tmp_path / "8") as domain:
        domain.wait("events", '"SUSPEND"')
        assert domain.text("console.log") == "restored\n"
        domain.order("resume")
        domain.wait("console.log", "restored\nresumed!\n")
        domain.wait("events", '"SUSPEND"', 2)
        with (tmp_path / "again").open("wb") as file:
            assert "return" in domain.order("save-state", file.fileno())
    with _restored(tmp_path / "again", tmp_path / "9") as domain:
        domain.wait("console.log", "restored\n")


def _ends(domain: _Process) -> str:
    assert domain.process.wait(_PATIENCE_S) == 1
    assert "ready" not in domain.text("events"), "no guest has run"
    assert not domain.text("console.log")
    words = domain.text("stderr")
    assert "Traceback" not in words
    return words


def test_a_damaged_state_runs_no_guest(state: Path, tmp_path: Path) -> None:
    data = bytearray(state.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "damaged").write_bytes(data)
    (tmp_path / "short").write_bytes(state.read_bytes()[:-1])
    with _restored(tmp_path / "damaged", tmp_path / "8") as domain:
        assert "the checksum of a section is wrong" in _ends(domain)
    with _restored(tmp_path / "short", tmp_path / "9") as domain:
        assert "it ends too early" in _ends(domain)


def test_a_state_of_another_size_is_refused(state: Path, tmp_path: Path) -> None:
    with _restored(state, tmp_path / "8", memory=32) as domain:
        assert "KiB of memory, the domain has" in _ends(domain)


def test_memory_is_sent_while_the_guest_writes_it(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(writer(60))
    with (
        _running(tmp_path / "7", kernel=tmp_path / "kernel", domid=7) as domain,
        (tmp_path / "saved").open("wb") as file,
    ):
        domain.wait("console.log", "working!\n")
        answer = domain.order("send-memory", file.fileno(), downtime_ms=0, bandwidth=32 << 20)
        assert answer["return"]["round"] > 1, "it was still writing"
        assert domain.order("send-memory", file.fileno())["error"]["desc"].endswith("its memory is being sent")
        domain.wait("events", '"SUSPEND"')
        assert domain.order("save-state")["return"]["size"] == (tmp_path / "saved").stat().st_size
        domain.order("resume")
        domain.wait("console.log", "the same\n")
        assert domain.order("sending") == {"return": {"sent": 0, "remaining": 0, "round": 0}}
    with _restored(tmp_path / "saved", tmp_path / "8") as domain:
        domain.wait("console.log", "the same\n")


def test_a_guest_goes_on_when_its_sending_is_called_off(tmp_path: Path) -> None:
    """While nobody reads, or when whoever should has gone."""
    (tmp_path / "kernel").write_bytes(writer(100))
    with _running(tmp_path / "7", kernel=tmp_path / "kernel", domid=7) as domain:
        domain.wait("console.log", "working!\n")
        out, into = os.pipe()
        answers: list[dict[str, Any]] = []
        for stop in (lambda: domain.order("stop-sending"), lambda: os.close(out)):
            sending = threading.Thread(target=lambda: answers.append(domain.order("send-memory", into)))
            sending.start()
            while not domain.order("sending")["return"]["round"]:
                time.sleep(0.01)
            time.sleep(0.2)
            assert sending.is_alive()
            stop()
            sending.join()
        assert [answer["error"]["desc"] for answer in answers] == ["it was called off", "Broken pipe"]
        os.close(into)
        domain.wait("events", '"SUSPEND"')
        domain.order("resume")
        domain.wait("console.log", "the same\n")

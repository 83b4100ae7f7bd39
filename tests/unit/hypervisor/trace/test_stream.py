"""Connections that get the trace: over control.sock, several at once, slow ones, and how they end."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from pyxen.abi import hypercall as nr
from pyxen.abi import version
from pyxen.hypervisor.control import Control
from pyxen.hypervisor.kvm_machine import KvmMachine
from pyxen.hypervisor.loop import Loop
from pyxen.hypervisor.trace import Tracing
from pyxen.hypervisor.trace.ring import SIZE
from pyxen.xenstore.connection import Connection
from pyxen.xenstore.store import Store
from tests.unit.hypervisor.hypercalls.scripted import ScriptedGuest

_SOON_S = 20.0


class Machine:
    """Remembers who serves the hypercalls, and who is told of exits."""

    def __init__(self, side: Any) -> None:
        self.original = self.side = side
        self.observer: Any = None

    def attach(self, side: Any) -> None:
        self.side = side

    def observe(self, observer: Any) -> None:
        self.observer = observer


class Host:
    """A scripted guest, its main loop in a thread, and its control socket."""

    def __init__(self, folder: Path) -> None:
        self.guest = ScriptedGuest()
        self.machine = Machine(self.guest.domain)
        self.loop = Loop()
        self.store = Connection(Store(), 7)
        self.tracing = Tracing(cast(KvmMachine, self.machine), self.guest.domain, self.store, self.loop)
        self.path = folder / "control.sock"
        self.control = Control(self.path, self.loop, {"ping": lambda: None}, {"trace": self.tracing.open})
        self.thread = threading.Thread(target=self.loop.run)
        self.thread.start()

    def version(self) -> None:
        self.machine.side.hypercall(0, nr.XEN_VERSION, (version.VERSION, 0, 0, 0, 0, 0), 64)

    def connect(self, **arguments: object) -> Lines:
        lines = Lines(self.path)
        lines.say("trace", **arguments)
        assert lines.next() == {"return": {}}
        return lines

    def stop(self) -> None:
        if self.thread.is_alive():
            self.loop.stop()
            self.thread.join()
            self.tracing.close()

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _SOON_S
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.005)


class Lines:
    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(_SOON_S)
        self.socket.connect(str(path))
        self._file = self.socket.makefile("rb")

    def say(self, command: str, **arguments: object) -> None:
        self.socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")

    def next(self) -> Any:
        line = self._file.readline()
        return json.loads(line) if line else None

    def close(self) -> None:
        self._file.close()
        self.socket.close()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    yield host
    host.stop()
    host.control.close()
    host.loop.close()


def test_nothing_is_in_place_unless_somebody_looks(host: Host) -> None:
    def untouched() -> bool:
        return (
            host.machine.side is host.machine.original
            and host.machine.observer is None
            and host.guest.domain.evtchn.observer is None
            and host.store.observer is None
        )

    assert untouched()
    first, second = host.connect(), host.connect()
    assert not untouched()
    first.close()
    host.version()
    assert second.next()["name"] == "xen_version"
    second.close()
    host.until(untouched)


def test_two_who_look_each_see_everything(host: Host) -> None:
    both = [host.connect(), host.connect()]
    host.version()
    for lines in both:
        found = lines.next()
        assert found["kind"] == "hypercall"
        assert (found["op"], found["out"], found["vcpu"]) == ("version", {"version": "4.17"}, 0)
        assert found["us"] >= 0
        assert found["time_s"] >= 0
        lines.close()


def test_only_the_kinds_that_were_asked_for(host: Host) -> None:
    lines = host.connect(only=["xenstore"])
    for _ in range(500):
        host.version()
    host.store.receive(bytes.fromhex("02000000 01000000 00000000 02000000") + b"a\0")
    found = lines.next()
    assert (found["kind"], found["name"], found["args"], found["error"]) == (
        "xenstore",
        "read",
        {"path": "a"},
        "EACCES",
    )
    lines.close()


def test_an_unknown_kind_is_refused_and_other_commands_go_on(host: Host) -> None:
    lines = Lines(host.path)
    lines.say("trace", only=["nonsense"])
    assert lines.next()["error"]["code"] == "invalid-request"
    lines.say("ping")
    assert lines.next() == {"return": {}}
    lines.close()


@pytest.mark.parametrize("only", [7, "port", [[]], [{}], {"a": 1}, [None], ["x" * 100_000]])
def test_nonsense_is_refused_in_few_words(host: Host, only: object) -> None:
    lines = Lines(host.path)
    lines.say("trace", only=only)
    assert len(lines.next()["error"]["desc"]) < 200
    lines.close()


def test_who_does_not_read_holds_nobody_up_and_is_told_what_it_lost(host: Host) -> None:
    slow, quick = host.connect(), host.connect(only=["timer"])
    total = 6 * SIZE
    for _ in range(total):
        host.version()
    host.machine.side.timer_expired(0)
    found = quick.next()
    while found["kind"] == "lost":
        found = quick.next()
    assert found["kind"] == "timer"
    seen = lost = 0
    while seen + lost < total:
        found = slow.next()
        lost += found.get("count", 0)
        seen += found["kind"] == "hypercall"
    assert lost > 0
    assert seen + lost == total
    for lines in (slow, quick):
        lines.close()


def test_the_domains_end_is_the_last_line(host: Host) -> None:
    lines = host.connect()
    for _ in range(200):
        host.version()
    host.loop.call_soon(lambda: host.tracing.end("reboot"))
    found = [lines.next() for _ in range(201)]
    assert [each["kind"] for each in found] == ["hypercall"] * 200 + ["end"]
    assert found[-1] == {"kind": "end", "name": "reboot"}
    assert lines.next() is None
    lines.close()
    host.until(lambda: host.machine.side is host.machine.original)


def test_a_process_that_is_told_to_end_still_says_so(host: Host) -> None:
    lines = host.connect()
    host.version()
    host.stop()
    assert lines.next()["kind"] == "hypercall"
    assert lines.next() == {"kind": "end", "name": "destroyed"}
    assert lines.next() is None
    lines.close()


def test_not_more_than_eight(host: Host) -> None:
    there = [host.connect() for _ in range(8)]
    lines = Lines(host.path)
    lines.say("trace")
    assert lines.next()["error"]["code"] == "resource-exhausted"
    for each in (*there, lines):
        each.close()

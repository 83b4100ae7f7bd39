"""A console beyond the first, from a front end's ring to a socket."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyxen.abi import console_ring as abi
from pyxen.abi.agent import Kind
from pyxen.abi.xenbus import XenbusState
from pyxen.backend import channel
from pyxen.backend.xenbus import Address, introduce
from pyxen.engine.sockets import listen
from pyxen.hypervisor import agent
from pyxen.hypervisor.agent import AgentSocket
from pyxen.hypervisor.loop import Loop
from pyxen.xend.agent_frames import Frame
from pyxen.xenstore.errors import XsError
from tests.unit.backend.guest import PATIENCE_S, ScriptedGuest

FRONT = "device/console/1"
BACK = "/local/domain/0/backend/console/1/1"


class Lab:
    """A guest with hvc_xen's manners, a loop that runs when it is waited for, and callers."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.loop = Loop()
        self.guest = ScriptedGuest()
        front, back = channel.describe(1, "org.pyxen.agent.0")
        introduce(self.guest.local, Address(1, "console", 1), frontend=front, backend=back)
        self.end = AgentSocket(listen(place, "agent.sock"), self.loop)
        self.device = channel.attach(self.guest.local, self.guest, 1, self.end)
        self.callers: list[socket.socket] = []

    def connect(self) -> None:
        """As xencons_connect_backend of Linux does."""
        ref, self.page = self.guest.page()
        self.words = self.page.cast("I")
        self.ref, self.port = ref, self.guest.port()
        for key, value in {"ring-ref": ref, "port": self.port, "state": 3}.items():
            self.guest.write(f"{FRONT}/{key}", value)
        self.turn()

    def call(self) -> socket.socket:
        caller = socket.socket(socket.AF_UNIX)
        self.callers.append(caller)
        caller.setblocking(False)
        caller.connect(str(self.place / "agent.sock"))
        return caller

    def event(self) -> None:
        self.guest.evtchn.bound[self.port].callback()
        self.turn()

    def turn(self) -> None:
        """One round of the main loop, without a wait."""
        for key, mask in self.loop.selector.select(0):
            key.data(mask)

    def wait(self, read: socket.socket, count: int) -> bytes:
        found = b""
        end = time.monotonic() + PATIENCE_S
        while len(found) < count:
            assert time.monotonic() < end, found
            self.turn()
            try:
                found += (data := read.recv(count - len(found)))
            except BlockingIOError:
                continue
            assert data, "hung up"
        return found

    def say(self, data: bytes) -> None:
        prod = self.words[abi.OUT_PROD >> 2]
        for index, byte in enumerate(data):
            self.page[abi.OUT + (prod + index) % abi.OUT_SIZE] = byte
        self.words[abi.OUT_PROD >> 2] = prod + len(data)
        self.event()

    def hear(self) -> bytes:
        """All that the guest can read now, and then some more, until there is nothing."""
        found = b""
        for _ in range(1000):
            self.turn()
            cons, prod = self.words[abi.IN_CONS >> 2], self.words[abi.IN_PROD >> 2]
            found += bytes(self.page[abi.IN + (cons + n) % abi.IN_SIZE] for n in range(prod - cons))
            self.words[abi.IN_CONS >> 2] = prod
            self.event()
        return found

    def state(self) -> str | None:
        return self.guest.local.read(f"{BACK}/state")


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    found = Lab(tmp_path)
    yield found
    found.device.destroy()
    for caller in found.callers:
        caller.close()
    assert not found.guest.grants.mapped
    assert list(found.loop.selector.get_map()) == [found.loop._wakeup]
    found.loop.close()


def test_what_the_tool_stack_says_of_it(lab: Lab) -> None:
    read = lab.guest.local.read
    assert read("/local/domain/1/device/console/1/name") == read(f"{BACK}/name") == "org.pyxen.agent.0"
    assert read("/local/domain/1/device/console/1/type") == "ioemu"
    assert read("/local/domain/1/device/console/1/output") == "chardev:libxl-channel1"
    assert read(f"{BACK}/protocol") == "vt100"
    assert lab.state() == str(XenbusState.INIT_WAIT.value)


def test_both_sides_hear_each_other(lab: Lab) -> None:
    caller = lab.call()
    lab.turn()
    lab.connect()
    assert lab.state() == str(XenbusState.CONNECTED.value)
    lab.say(b"from the guest")
    assert lab.wait(caller, 14) == b"from the guest"
    caller.sendall(b"to the guest")
    assert lab.hear() == b"to the guest"
    assert lab.guest.evtchn.bound[lab.port].notified


def test_what_is_said_before_the_guest_is_there_waits_for_it(lab: Lab) -> None:
    caller = lab.call()
    caller.sendall(b"early")
    for _ in range(3):
        lab.turn()
    lab.connect()
    assert lab.hear() == b"early"


def test_a_guest_that_is_not_there_yet_stops_its_caller_and_loses_nothing(lab: Lab) -> None:
    caller = lab.call()
    data = bytes(range(251)) * 4000
    sent = 0
    for _ in range(100):
        lab.turn()
        with contextlib.suppress(BlockingIOError):
            sent += caller.send(data[sent:])
    assert sent < len(data)
    lab.connect()
    assert lab.hear() == data[:sent]


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(-3, 6000), min_size=1, max_size=6), cut=st.integers(1, 20_000))
def test_a_frame_that_a_caller_leaves_unfinished_is_ended(tmp_path: Path, sizes: list[int], cut: int) -> None:
    lab = Lab(tmp_path)
    frames = [Frame(Kind.DATA, payload=b"x" * size).pack() if size >= 0 else b"\0" for size in sizes]
    said = b"".join(frames)[:cut]
    caller = lab.call()
    lab.connect()
    caller.sendall(said)
    heard = lab.hear()
    assert heard == said
    caller.close()
    lab.turn()
    lab.call().sendall(b"the next")
    heard += lab.hear()
    assert heard.endswith(b"the next")
    assert not heard[len(said) : -8].strip(b"\0")
    position = 0
    while position < len(heard) - 8:
        position += 8 + int.from_bytes(heard[position + 4 : position + 8], "little") if heard[position] else 1
    assert position == len(heard) - 8, "an agent takes it for the beginning of a frame"
    lab.device.destroy()
    lab.callers[-1].close()
    lab.loop.close()


def test_what_a_guest_has_not_been_given_goes_with_its_caller(lab: Lab) -> None:
    lab.connect()
    caller = lab.call()
    caller.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    data = Frame(Kind.DATA, payload=b"x" * 60_000).pack()
    for _ in range(20):
        with contextlib.suppress(BlockingIOError):
            data = data[caller.send(data) :]
        lab.turn()
    assert data
    caller.close()
    lab.turn()
    lab.call().sendall(b"the next")
    heard = lab.hear()
    assert heard.count(b"x") < 30_000
    assert len(heard) == 60_008 + 8 and heard.endswith(b"the next")


def test_while_a_guest_is_to_suspend_itself_nothing_is_said_to_it(lab: Lab) -> None:
    lab.connect()
    caller = lab.call()
    caller.sendall(b"before")
    assert lab.hear() == b"before"
    lab.end.silence(True)
    caller.sendall(b"after")
    assert lab.hear() == b""
    lab.say(b"it may still speak")
    assert lab.wait(caller, 18) == b"it may still speak"
    lab.end.silence(False)
    assert lab.hear() == b"after"


def test_what_a_caller_left_that_has_gone_is_not_the_next_ones(lab: Lab) -> None:
    first = lab.call()
    first.sendall(b"early")
    for _ in range(3):
        lab.turn()
    second = lab.call()
    second.sendall(b"second")
    first.close()
    for _ in range(5):
        lab.turn()
    lab.connect()
    assert lab.hear() == b"second"


def test_what_nobody_listens_to_is_thrown_away(lab: Lab) -> None:
    lab.connect()
    lab.say(b"nobody")
    caller = lab.call()
    lab.turn()
    lab.say(b"somebody")
    assert lab.wait(caller, 8) == b"somebody"


def test_a_guest_that_does_not_read_stops_its_caller_and_loses_nothing(lab: Lab) -> None:
    lab.connect()
    caller = lab.call()
    caller.sendall(b"hello")
    assert lab.hear() == b"hello"
    data = bytes(range(251)) * 4000
    sent = 0
    for _ in range(100):
        lab.turn()
        try:
            sent += caller.send(data[sent:])
        except BlockingIOError:
            continue
    assert sent < len(data), "somebody took a megabyte for a guest that reads nothing"
    heard = b""
    while sent < len(data) or len(heard) < len(data):
        heard += lab.hear()
        try:
            sent += caller.send(data[sent:])
        except BlockingIOError:
            continue
    assert heard == data


def test_a_guest_that_floods_its_caller_is_hung_up_on(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "_MOST_SAID", 1 << 20)
    lab.connect()
    lab.call()
    lab.turn()
    other = lab.call()
    for _ in range(2000):
        lab.words[abi.OUT_PROD >> 2] += 2048
        lab.guest.evtchn.bound[lab.port].callback()
    assert len(lab.end._said) <= (1 << 20) + 2048
    for _ in range(3):
        lab.turn()
    lab.say(b"again")
    assert lab.wait(other, 5) == b"again"


def test_a_front_end_that_comes_again_goes_on(lab: Lab) -> None:
    """As after a restoration, or with another driver."""
    caller = lab.call()
    lab.turn()
    lab.connect()
    lab.guest.write(f"{FRONT}/state", XenbusState.CLOSED.value)
    assert lab.state() == str(XenbusState.CLOSED.value)
    assert not lab.guest.grants.mapped
    lab.turn()
    assert caller.recv(1) == b"", "who spoke to the agent that was there must greet the next one"
    again = lab.call()
    again.sendall(b"meanwhile")
    lab.turn()
    lab.guest.write(f"{FRONT}/state", XenbusState.INITIALISING.value)
    lab.connect()
    assert lab.hear() == b"meanwhile"


@pytest.mark.parametrize("key", ["ring-ref", "port", "protocol"])
def test_what_can_not_be_is_refused(lab: Lab, key: str) -> None:
    ref, _ = lab.guest.page()
    keys: dict[str, str | int] = {"ring-ref": ref, "port": lab.guest.port(), key: 4000}
    for name, value in keys.items():
        lab.guest.write(f"{FRONT}/{name}", value)
    lab.guest.write(f"{FRONT}/state", 3)
    assert lab.state() == str(XenbusState.CLOSING.value)


_STEPS = st.one_of(
    st.tuples(st.just("state"), st.integers(0, 8)),
    st.tuples(st.sampled_from(["ring-ref", "port"]), st.sampled_from(["good", "bad", "none"])),
    st.tuples(st.just("index"), st.tuples(st.integers(768, 771), st.integers(0, 2**32 - 1))),
    st.tuples(st.sampled_from(["event", "call", "leave", "turn", "close", "online"]), st.none()),
    st.tuples(st.just("say"), st.integers(1, 100_000)),
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(_STEPS, max_size=40))
def test_whatever_both_sides_do_nothing_is_left(tmp_path: Path, steps: list[tuple[str, Any]]) -> None:
    lab = Lab(tmp_path)
    page = lab.guest.page()
    values = {"ring-ref": page[0], "port": lab.guest.port()}
    for step, value in steps:
        match step:
            case "state" | "ring-ref" | "port":
                found: Any = {"good": values.get(step, 0), "bad": 999, "none": ""}.get(value, value)
                with contextlib.suppress(XsError):  # when its device has gone
                    lab.guest.write(f"{FRONT}/{step}", found)
            case "index":
                page[1].cast("I")[value[0]] = value[1]
            case "event":
                for port in lab.guest.evtchn.bound.values():
                    port.callback()
            case "call":
                with contextlib.suppress(ConnectionRefusedError, BlockingIOError):  # it has gone, or is full
                    lab.call()
            case "leave" if lab.callers:
                lab.callers.pop(0).close()
            case "say" if lab.callers:
                with contextlib.suppress(OSError):
                    lab.callers[0].send(bytes(value))
            case "turn":
                lab.turn()
            case "close":
                lab.device.request_close()
            case "online":
                lab.device.take_away()
    lab.device.destroy()
    for caller in lab.callers:
        caller.close()
    assert not lab.guest.grants.mapped
    assert list(lab.loop.selector.get_map()) == [lab.loop._wakeup]
    lab.loop.close()

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from pyxen import errors
from pyxen.api import PowerState
from pyxen.client import Address, Client, Console, DomainNotFound

from .console_stub import ConsoleStub, wait_until


@pytest.fixture
def xend(tmp_path: Path) -> Iterator[ConsoleStub]:
    with ConsoleStub(tmp_path / "xend.sock") as stub:
        yield stub


def open_console(xend: ConsoleStub, *, wait: bool = False) -> Console:
    with Client(Address(socket=xend.path)) as client:
        return client.console("web", wait=wait)


class Reader(threading.Thread):
    """Collects a console's output until it ends."""

    def __init__(self, console: Console) -> None:
        super().__init__(daemon=True)
        self.console = console
        self.output = b""
        self.failure: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            for chunk in self.console:
                self.output += chunk
        except Exception as error:
            self.failure = error


def test_output_input_and_the_end(xend: ConsoleStub) -> None:
    xend.output += b"hello\r\n"
    with open_console(xend) as console:
        reader = Reader(console)
        console.write(b"poweroff\n")
        wait_until(lambda: xend.typed == b"poweroff\n")
        xend.output += b"bye\r\n"
        xend.end("poweroff")
        reader.join(30)
    assert reader.output == b"hello\r\nbye\r\n"
    assert console.ended == "poweroff"


def test_a_restart_of_xend_loses_and_doubles_nothing(xend: ConsoleStub) -> None:
    lines = [b"line %d\r\n" % number for number in range(5000)]
    with open_console(xend) as console:
        reader = Reader(console)
        for number, line in enumerate(lines):
            xend.output += line
            if number % 2000 == 1999:
                wait_until(lambda: len(reader.output) > 1000 * xend.attached)
                attached = xend.attached
                xend.stop()
                xend.output += b"unheard\r\n"
                xend.start()
                wait_until(lambda: xend.attached > attached)  # noqa: B023 - used at once
        console.write(b"typed after it")
        wait_until(lambda: b"typed after it" in xend.typed)
        xend.end("poweroff")
        reader.join(30)
    assert reader.failure is None
    assert reader.output == bytes(xend.output)
    assert xend.attached >= 3


def test_a_domain_that_ended_while_xend_was_away(xend: ConsoleStub) -> None:
    with open_console(xend) as console:
        reader = Reader(console)
        wait_until(lambda: xend.attached == 1)
        xend.stop()
        xend.end("poweroff")
        xend.start()
        reader.join(30)
    assert reader.failure is None
    assert console.ended is not None


def test_the_next_life_is_heard_only_when_asked_for(xend: ConsoleStub) -> None:
    first, second = open_console(xend), open_console(xend, wait=True)
    readers = [Reader(first), Reader(second)]
    xend.output += b"first life"
    wait_until(lambda: all(reader.output for reader in readers))
    xend.stop()
    assert xend.domain is not None
    xend.domain = msgspec.structs.replace(xend.domain, domid=4)
    xend.output[:] = b"second"
    xend.start()
    readers[0].join(30)
    wait_until(lambda: readers[1].output == b"first lifesecond")
    assert readers[0].output == b"first life"
    second.close()
    readers[1].join(30)
    first.close()


def test_leaving_ends_the_iteration(xend: ConsoleStub) -> None:
    console = open_console(xend)
    reader = Reader(console)
    wait_until(lambda: xend.attached == 1)
    console.close()
    reader.join(30)
    assert not reader.is_alive()
    assert reader.failure is None
    assert console.ended is None


def test_what_has_no_console(xend: ConsoleStub) -> None:
    assert xend.domain is not None
    xend.domain = msgspec.structs.replace(xend.domain, domid=None, power_state=PowerState.HALTED)
    with pytest.raises(errors.Conflict, match="not started"):
        open_console(xend)
    with pytest.raises(errors.Conflict, match="not running"):
        open_console(xend, wait=True)
    xend.domain = msgspec.structs.replace(xend.domain, domid=0)
    with pytest.raises(errors.Conflict, match="Domain-0"):
        open_console(xend)
    xend.domain = None
    with pytest.raises(DomainNotFound):
        open_console(xend)


def test_xend_that_stays_away_is_an_error(xend: ConsoleStub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyxen.client.console._RECONNECT_S", 0.2)
    with open_console(xend) as console:
        reader = Reader(console)
        wait_until(lambda: xend.attached == 1)
        xend.stop()
        reader.join(30)
        assert isinstance(reader.failure, errors.Unavailable)
        with pytest.raises(errors.Unavailable):
            console.write(b"x")
    xend.start()

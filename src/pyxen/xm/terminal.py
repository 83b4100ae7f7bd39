"""A console in front of the user: the terminal in raw mode, or standard input and output as plain pipes."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import threading
import time
import tty
from collections.abc import Iterator
from typing import NoReturn

import click

from pyxen.client.console import Console
from pyxen.errors import PyxenError

ESCAPE = b"\x1d"
"""Ctrl-]"""
_READ = 4096


def attach(console: Console, *, drain_s: float | None) -> None:
    """Connect the standard streams to ``console`` until the domain ends or the user leaves.

    On a terminal Ctrl-] leaves. Otherwise all of the standard input is typed into the guest; after its end, once the
    guest has been quiet for ``drain_s`` seconds, the console is left (None: only when the domain ends).
    """
    terminal = os.isatty(0)
    name = console.domain.name
    if terminal:
        click.echo(f"Connected to {name}; Ctrl-] leaves", err=True)
    session = _Session(console, terminal, drain_s)
    try:
        with raw() if terminal else contextlib.nullcontext():
            session.run()
    except BaseException:
        if terminal:
            _end_line()
        raise
    if terminal:
        end = f"Domain {name} has ended" + (f" ({console.ended})" if console.ended else "")
        click.echo(f"\n{end if console.ended is not None else f'Left {name}'}", err=True)


class _Session:
    """The two directions: output in the main thread, input in another."""

    def __init__(self, console: Console, terminal: bool, drain_s: float | None) -> None:
        self._console = console
        self._terminal = terminal
        self._drain_s = drain_s
        self._last_output = time.monotonic()
        self._failure: PyxenError | None = None
        self._stop, self._stopping = os.pipe()

    def run(self) -> None:
        typing = threading.Thread(target=self._type, name="console-input", daemon=True)
        sys.stdout.flush()
        typing.start()
        try:
            for chunk in self._console:
                write_all(1, chunk)
                self._last_output = time.monotonic()
        finally:
            self._console.close()
            os.close(self._stopping)
            typing.join(timeout=2)
            if not typing.is_alive():
                os.close(self._stop)
        if self._failure is not None:
            raise self._failure

    def _type(self) -> None:
        try:
            if self._copy_input():
                self._drain()
        except PyxenError as error:
            self._failure = error
            self._console.close()

    def _copy_input(self) -> bool:
        """Returns True at the end of the input, False when the console has been left or has ended."""
        while True:
            readable, _, _ = select.select([0, self._stop], [], [])
            if self._stop in readable:
                return False
            try:
                data = os.read(0, _READ)
            except OSError:
                # The terminal has hung up.
                data = b""
            if not data:
                if self._terminal:
                    self._console.close()
                return not self._terminal
            if self._terminal and ESCAPE in data:
                self._console.write(data[: data.index(ESCAPE)])
                self._console.close()
                return False
            self._console.write(data)

    def _drain(self) -> None:
        if self._drain_s is None:
            return
        ended = time.monotonic()
        while (left := max(self._last_output, ended) + self._drain_s - time.monotonic()) > 0:
            if select.select([self._stop], [], [], left)[0]:
                return
        self._console.close()


def write_all(descriptor: int, data: bytes) -> None:
    """All of it, however little is taken at a time."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _end_line() -> None:
    """What follows shall not stand behind the guest's prompt."""
    with contextlib.suppress(OSError):  # the terminal has hung up
        click.echo(err=True)


@contextlib.contextmanager
def raw() -> Iterator[None]:
    """The terminal passes every key on; whatever happens, it is as before afterwards."""
    before = termios.tcgetattr(0)
    handlers = {number: signal.signal(number, _leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        tty.setraw(0, termios.TCSANOW)
        yield
    finally:
        with contextlib.suppress(termios.error):
            termios.tcsetattr(0, termios.TCSANOW, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _leave(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)

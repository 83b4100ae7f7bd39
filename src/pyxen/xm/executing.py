"""A command in a guest in front of the user: standard streams, signals and, where wanted, the terminal."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence

import click

from pyxen.agent_api import ExecRequest
from pyxen.client import Client, DomainNotFound
from pyxen.client.agent import Command
from pyxen.errors import Conflict, NotFound
from pyxen.xm.terminal import raw, write_all

NOT_FOUND, NOT_RUNNABLE = 127, 126
_READ = 32 * 1024
_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def run(
    client: Client,
    domain: str,
    argv: Sequence[str],
    env: Mapping[str, str],
    cwd: str,
    *,
    interactive: bool,
    tty: bool,
    wait_s: float,
) -> int:
    """Run a command of a guest with this process's streams; returns its exit status."""
    if tty and not os.isatty(0):
        raise Conflict("the standard input is not a terminal", hint="Leave -t out: xm exec -i DOMAIN -- COMMAND")
    rows, columns = _size() if tty else (24, 80)
    if tty:
        env = {"TERM": os.environ.get("TERM", "vt100"), **env}
    request = ExecRequest(list(argv), dict(env), cwd, tty, rows, columns, wait_s)
    try:
        command = client.command(domain, request)
    except (NotFound, Conflict) as error:
        if isinstance(error, DomainNotFound) or not error.message.startswith("cannot run"):
            raise
        click.echo(f"Error: {error}", err=True)
        return NOT_FOUND if isinstance(error, NotFound) else NOT_RUNNABLE
    with command, raw() if tty else _signals_passed_on(command):
        if tty:
            signal.signal(signal.SIGWINCH, lambda *_: command.resize(*_size()))
        return attach(command, interactive=interactive or tty)


def attach(command: Command, *, interactive: bool) -> int:
    """Copy the streams until the command has ended; returns its exit status."""
    if interactive:
        threading.Thread(target=_type, args=(command,), name="command-input", daemon=True).start()
    else:
        command.end_input()
    sys.stdout.flush()
    for stream, data in command:
        write_all(stream, data)
    assert command.ended is not None
    return command.ended.status


def _type(command: Command) -> None:
    with contextlib.suppress(OSError):  # the terminal has hung up
        while data := os.read(0, _READ):
            command.write(data)
    command.end_input()


def _size() -> tuple[int, int]:
    size = os.get_terminal_size(0)
    return size.lines, size.columns


@contextlib.contextmanager
def _signals_passed_on(command: Command) -> Iterator[None]:
    """What would end this process ends the command instead; then this one, with its status."""
    before = {
        number: signal.signal(number, lambda caught, _: command.signal(caught))
        for number in _PASSED_ON
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

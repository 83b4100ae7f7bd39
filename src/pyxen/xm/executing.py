"""A command in a guest in front of the user: standard streams, signals and, where wanted, the terminal."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

import click

from pyxen.agent_api import ExecRequest
from pyxen.client import Client, DomainNotFound
from pyxen.client.agent import Command
from pyxen.errors import Conflict, InvalidRequest, NotFound
from pyxen.xm.terminal import ESCAPE, raw, write_all

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
    request = describe(argv, env, cwd, tty=tty, wait_s=wait_s)
    return follow(lambda: client.command(domain, request), interactive=interactive, tty=tty)


def describe(argv: Sequence[str], env: Mapping[str, str], cwd: str, *, tty: bool, wait_s: float) -> ExecRequest:
    """A command as xend is asked for it, with a terminal like this one where it gets one."""
    rows, columns = _size() if tty else (24, 80)
    if tty:
        env = {"TERM": os.environ.get("TERM", "vt100"), **env}
    return ExecRequest(list(argv), dict(env), cwd, tty, rows, columns, wait_s)


def follow(begin: Callable[[], Command], *, interactive: bool, tty: bool, escape: bool = False) -> int:
    """Start a command and carry this process's streams and signals until it has ended; returns its exit status.

    A second Ctrl-C is not passed on: it ends this process, and so the command, as with ``escape`` does Ctrl-] on a
    terminal.
    """
    try:
        command = begin()
        with command, raw() if tty else _signals_passed_on(command):
            if tty:
                signal.signal(signal.SIGWINCH, lambda *_: command.resize(*_size()))
            return attach(command, interactive=interactive or tty, escape=escape and tty)
    except (NotFound, Conflict) as error:  # at once, or of an agent that starts it when its input is there
        if isinstance(error, DomainNotFound) or not error.message.startswith("cannot run"):
            raise
        click.echo(f"Error: {error}", err=True)
        return NOT_FOUND if isinstance(error, NotFound) else NOT_RUNNABLE


def variable(word: str) -> tuple[str, str]:
    """The variable that an option ``--env NAME=VALUE`` sets. Raises InvalidRequest."""
    name, equals, value = word.partition("=")
    if not equals or not name:
        raise InvalidRequest(f"--env {word}: this is not NAME=VALUE")
    return name, value


def attach(command: Command, *, interactive: bool, escape: bool = False) -> int:
    """Copy the streams until the command has ended; returns its exit status."""
    if interactive:
        threading.Thread(target=_type, args=(command, escape), name="command-input", daemon=True).start()
    else:
        command.end_input()
    sys.stdout.flush()
    for stream, data in command:
        write_all(stream, data)
    assert command.ended is not None
    return command.ended.status


def _type(command: Command, escape: bool) -> None:
    with contextlib.suppress(OSError):  # the terminal has hung up
        while data := os.read(0, _READ):
            if escape and ESCAPE in data:
                os.kill(os.getpid(), signal.SIGTERM)
                return
            command.write(data)
    command.end_input()


def _size() -> tuple[int, int]:
    size = os.get_terminal_size(0)
    return size.lines, size.columns


@contextlib.contextmanager
def _signals_passed_on(command: Command) -> Iterator[None]:
    """What would end this process ends the command instead; then this one, with its status."""

    def pass_on(number: int, frame: object) -> None:
        command.signal(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {
        number: signal.signal(number, pass_on)
        for number in _PASSED_ON
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

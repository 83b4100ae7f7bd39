"""``xm run``: what this process and its surroundings are for the command in the guest."""

from __future__ import annotations

import contextlib
import os
import shlex
import threading
from dataclasses import dataclass
from pathlib import Path

import click

from pyxen.agent_api import AgentEvent, Running
from pyxen.client import Client
from pyxen.client.agent import Command
from pyxen.config.model import EngineChoice
from pyxen.errors import InvalidRequest, PyxenError
from pyxen.run_api import RunRequest
from pyxen.xm.executing import describe, follow, variable
from pyxen.xm.terminal import write_all

_TAKEN_ALONG = ("PATH", "LANG", "LC_ALL", "TZ")


@dataclass(frozen=True, slots=True)
class Wishes:
    """The command line."""

    argv: list[str]
    """Empty: a shell."""
    kernel: str | None
    rw: list[str]
    gdb: bool
    memory: int
    vcpus: int
    engine: str
    env: list[str]
    verbose: bool
    wait_s: float


def run(client: Client, wishes: Wishes) -> int:
    """Run the command in a domain of its own, with this process's streams; returns its exit status."""
    tty = os.isatty(0) and os.isatty(1)
    env = {name: os.environ[name] for name in _TAKEN_ALONG if name in os.environ}
    request = RunRequest(
        command=describe(
            wishes.argv or [os.environ.get("SHELL", "/bin/sh")],
            {**env, **dict(map(variable, wishes.env))},
            _here(),
            tty=tty,
            wait_s=wishes.wait_s,
        ),
        kernel=_kernel(wishes.kernel),
        rw=[_folder(folder) for folder in wishes.rw],
        memory=wishes.memory,
        vcpus=wishes.vcpus,
        engine=EngineChoice(wishes.engine),
        gdb=wishes.gdb,
        verbose=wishes.verbose,
    )

    def told(event: AgentEvent) -> None:
        if event.step is not None:
            click.echo(event.step, err=True)
        elif event.running is not None:
            _running(client, event.running, wishes)

    def begin() -> Command:
        try:
            return client.sandbox(request, told)
        finally:
            _show_for_now("")

    return follow(begin, interactive=True, tty=tty, escape=True)


def _show_for_now(text: str) -> None:
    """On a terminal, in place of what was shown so before."""
    if os.isatty(2):
        write_all(2, f"\r\x1b[K{text}".encode())


def _running(client: Client, running: Running, wishes: Wishes) -> None:
    if running.gdb is not None:
        words = ["gdb", *([running.symbols] if running.symbols else []), "-ex", f"target remote {running.gdb}"]
        click.echo(f"{running.name} waits for gdb: {shlex.join(words)}", err=True)
    elif not wishes.verbose:
        _show_for_now(f"Linux {running.kernel} boots in {running.name} …")
    if wishes.verbose:
        threading.Thread(target=_show_console, args=(client, running.name), name="console", daemon=True).start()


def _show_console(client: Client, name: str) -> None:
    with contextlib.suppress(PyxenError, OSError), client.console(name) as console:
        for chunk in console:
            write_all(2, chunk)


def _here() -> str:
    try:
        return str(Path.cwd())
    except OSError as error:
        raise InvalidRequest(f"the current folder is gone: {error.strerror}", hint="cd somewhere else.") from None


def _folder(path: str) -> str:
    folder = Path(path).expanduser().absolute().resolve()
    if not folder.is_dir():
        raise InvalidRequest(f"--rw {path}: there is no such folder")
    return str(folder)


def _kernel(name: str | None) -> str | None:
    """A path as it is from here, or a name that xend knows better."""
    if name is not None and ("/" in name or name == "." or Path(name).exists()):
        return str(Path(name).expanduser().absolute())
    return name

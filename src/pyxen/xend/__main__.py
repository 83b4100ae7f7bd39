"""The command ``xend``: start, stop, restart, status, run."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import click

from pyxen import __version__
from pyxen.errors import PyxenError
from pyxen.paths import Roots, find_roots

NOT_RUNNING = 3
_START_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 60.0


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="xend")
def cli() -> None:
    """The daemon that manages this machine's domains. They run on when it stops."""


_listen = click.option("--listen", metavar="ADDRESS:PORT", help="Also answer on TCP, on a loopback address.")


@cli.command()
@_listen
@click.option("--ready-fd", type=int, hidden=True)
def run(listen: str | None, ready_fd: int | None) -> None:
    """Run in the foreground until Ctrl-C or SIGTERM."""
    from pyxen.xend.daemon import serve

    asyncio.run(serve(find_roots(), listen=listen, ready=ready_fd, foreground=ready_fd is None))


@cli.command()
@_listen
def start(listen: str | None) -> None:
    """Start in the background; returns when xend answers."""
    roots = find_roots()
    if pid := running_pid(roots):
        click.echo(f"xend is running (pid {pid})")
        return
    click.echo(f"xend started (pid {spawn(roots, listen)})")


@cli.command()
def stop() -> None:
    """Stop xend; domains run on."""
    roots = find_roots()
    if not (pid := running_pid(roots)):
        click.echo("xend is not running")
        return
    end(roots, pid)
    click.echo("xend stopped")


@cli.command()
@_listen
def restart(listen: str | None) -> None:
    """Stop and start xend; domains run on."""
    roots = find_roots()
    if pid := running_pid(roots):
        end(roots, pid)
    click.echo(f"xend started (pid {spawn(roots, listen)})")


@cli.command()
def status() -> None:
    """Say whether xend runs; exit status 3 if not."""
    roots = find_roots()
    if pid := running_pid(roots):
        click.echo(f"xend is running (pid {pid}), socket {roots.socket}")
        return
    click.echo("xend is not running")
    sys.exit(NOT_RUNNING)


def running_pid(roots: Roots) -> int | None:
    """The pid of the xend of these folders: whoever holds the lock on its pid file."""
    import fcntl

    try:
        descriptor = os.open(roots.pidfile, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.read(descriptor, 32).strip()
        return int(text) if text.isdigit() else None
    finally:
        os.close(descriptor)
    return None


def spawn(roots: Roots, listen: str | None) -> int:
    """Start xend as a daemon and wait until it answers; raises PyxenError with its words if it doesn't."""
    words = roots.state / "xend.err"
    try:
        roots.state.mkdir(parents=True, exist_ok=True)
        errors = words.open("wb")
    except OSError as error:
        raise PyxenError(
            f"cannot use {error.filename}: {error.strerror}", hint="Set PYXEN_ROOT to a folder that you may write to."
        ) from error
    receive, ready = os.pipe()
    try:
        with errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "pyxen.xend", "run", "--ready-fd", str(ready)]
                + (["--listen", listen] if listen else []),
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                pass_fds=[ready],
                start_new_session=True,
                cwd="/",
            )
        os.close(ready)
        readable, _, _ = select.select([receive], [], [], _START_TIMEOUT_S)
        if not readable or not os.read(receive, 1):
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()
            raise PyxenError(_last_words(words) or "xend did not start", hint=f"Its log is {roots.log}")
    finally:
        os.close(receive)
    # The daemon is nobody's child from here on; don't warn about it when this process ends.
    process.returncode = 0
    return process.pid


def _last_words(path: Path) -> str:
    lines = path.read_text(errors="replace").strip().splitlines()
    return next(
        (line.removeprefix("Error: ") for line in lines if line.startswith("Error: ")), lines[-1] if lines else ""
    )


def end(roots: Roots, pid: int) -> None:
    """SIGTERM, and wait until its lock is free; raises PyxenError if it isn't in time."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + _STOP_TIMEOUT_S
    while running_pid(roots):
        if time.monotonic() > deadline:
            raise PyxenError(f"xend (pid {pid}) has not stopped after {_STOP_TIMEOUT_S:.0f} seconds")
        time.sleep(0.05)


def main() -> None:
    try:
        cli(standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        sys.exit(130)
    except PyxenError as error:
        print(f"Error: {error}", file=sys.stderr)
        if error.hint:
            print(error.hint, file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()

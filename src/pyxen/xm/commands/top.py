from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import click

from pyxen.xm import usage
from pyxen.xm.command import format_option, pass_session, subcommand
from pyxen.xm.output import echo_json, echo_lines
from pyxen.xm.session import Session
from pyxen.xm.wait import PATIENCE_S


@subcommand("top", examples=["xm top", "xm top --delay 5", "xm top --format json"])
@click.option("-d", "--delay", default=1.0, show_default=True, type=click.FloatRange(min=0.1), metavar="SECONDS")
@format_option
@pass_session
def command(session: Session, delay: float, form: str) -> None:
    """Watch what the domains use.

    CPU(%) is of one host CPU, measured over the delay; MEM(%) is of the host's memory. Refreshed until q or Ctrl-C on
    a terminal; elsewhere one table.
    """
    meter = usage.Meter(session.client.patient(PATIENCE_S))
    meter.sample()
    if form == "json" or not sys.stdout.isatty():
        _sleep(min(delay, 1.0), keys=False)
        rows = meter.sample()
        if form == "json":
            echo_json({"domains": [row._asdict() for row in rows]})
        else:
            echo_lines(usage.table(rows))
        return
    _watch(meter, delay)


def _watch(meter: usage.Meter, delay: float) -> None:
    from rich.live import Live

    from pyxen.xm.usage import rich_table

    keys = sys.stdin.isatty()
    with _keys() if keys else nullcontext(), Live(rich_table(meter.sample()), auto_refresh=False, screen=True) as live:
        while not _sleep(delay, keys=keys):
            live.update(rich_table(meter.sample()), refresh=True)


def _sleep(seconds: float, *, keys: bool) -> bool:
    """Wait; returns True as soon as q is pressed."""
    import os
    import select
    import time

    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        if not keys:
            time.sleep(left)
        elif select.select([0], [], [], left)[0]:
            data = os.read(0, 16)
            if not data or b"q" in data.lower():
                return True
    return False


@contextmanager
def _keys() -> Iterator[None]:
    """Single keys without Enter; the terminal is as before afterwards."""
    import termios
    import tty

    before = termios.tcgetattr(0)
    try:
        tty.setcbreak(0)
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)

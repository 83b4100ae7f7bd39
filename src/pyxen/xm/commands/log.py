from __future__ import annotations

import contextlib

import click

from pyxen.xm.command import pass_session, subcommand
from pyxen.xm.session import Session


@subcommand("log", examples=["xm log", "xm log --tail 50", "xm log -f --tail 10"])
@click.option("--tail", type=click.IntRange(min=1), metavar="N", help="Only the last N lines.")
@click.option("-f", "--follow", is_flag=True, help="Go on with what is written from now on, until Ctrl-C.")
@pass_session
def command(session: Session, tail: int | None, follow: bool) -> None:
    """Print xend's log."""
    if not follow:
        click.echo(session.client.log(tail), nl=False)
        return
    with contextlib.suppress(KeyboardInterrupt):
        for line in session.client.follow_log(tail):
            click.echo(line)

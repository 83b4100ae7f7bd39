from __future__ import annotations

import click

from pyxen.xm.command import pass_session, subcommand
from pyxen.xm.session import Session


@subcommand("log", examples=["xm log", "xm log --tail 50"])
@click.option("--tail", type=click.IntRange(min=1), metavar="N", help="Only the last N lines.")
@pass_session
def command(session: Session, tail: int | None) -> None:
    """Print xend's log."""
    click.echo(session.client.log(tail), nl=False)

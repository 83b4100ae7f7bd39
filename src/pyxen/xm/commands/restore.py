from __future__ import annotations

from pathlib import Path

import click

from pyxen.xm.command import pass_session, subcommand
from pyxen.xm.session import Session


@subcommand("restore", examples=["xm restore /var/tmp/web.saved", "xm restore -p /var/tmp/web.saved"])
@click.option("-p", "--paused", is_flag=True, help="Leave the domain paused.")
@click.argument("file", type=click.Path(path_type=Path))
@pass_session
def command(session: Session, file: Path, paused: bool) -> None:
    """Start a domain from its saved state.

    FILE is what xm save has written. The domain goes on where it was saved, with its name and UUID and a new id; the
    file stays. A guest with an agent is told the time and given new random numbers. Without one its clock goes on from
    when it was saved, and what is started twice from one file has the same random numbers ahead.
    """
    domain = session.client.restore(str(file.absolute()), paused=paused)
    for warning in domain.warnings:
        click.echo(f"Warning: {warning}", err=True)

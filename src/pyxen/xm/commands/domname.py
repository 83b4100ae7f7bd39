from __future__ import annotations

import click

from pyxen.xm.command import domain_argument, pass_session, subcommand
from pyxen.xm.session import Session


@subcommand("domname", examples=["xm domname 3"])
@domain_argument()
@pass_session
def command(session: Session, domain: str) -> None:
    """Print a domain's name."""
    click.echo(session.client.domain(domain).name)

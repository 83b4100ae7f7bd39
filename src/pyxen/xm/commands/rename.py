from __future__ import annotations

import click

from pyxen.xm.command import domain_argument, pass_session, subcommand
from pyxen.xm.session import Session


@subcommand("rename", examples=["xm rename web web-old"])
@domain_argument()
@click.argument("name", metavar="NEWNAME")
@pass_session
def command(session: Session, domain: str, name: str) -> None:
    """Give a domain another name."""
    session.client.rename(domain, name)

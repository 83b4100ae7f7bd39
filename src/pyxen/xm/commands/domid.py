from __future__ import annotations

import click

from pyxen.xm.command import domain_argument, pass_session, subcommand
from pyxen.xm.session import Session


@subcommand("domid", examples=["xm domid web"])
@domain_argument()
@pass_session
def command(session: Session, domain: str) -> None:
    """Print a domain's id.

    "None" stands for a managed domain that does not run.
    """
    click.echo(str(session.client.domain(domain).domid))

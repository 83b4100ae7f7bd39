from __future__ import annotations

import click

from pyxen.xm.command import domain_argument, pass_session, subcommand
from pyxen.xm.session import Session


@subcommand("block-detach", examples=["xm block-detach web xvdb", "xm block-detach web 51728"])
@domain_argument()
@click.argument("device", metavar="VDEV")
@pass_session
def command(session: Session, domain: str, device: str) -> None:
    """Take a disk away from a domain.

    The guest is asked to let go of it, and waited for: 30 seconds, or what detach_timeout in xend.toml says. VDEV is
    its name, or its number as xm block-list shows it.
    """
    session.client.detach_disk(domain, device)

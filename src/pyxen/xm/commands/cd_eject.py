from __future__ import annotations

import click

from pyxen.xm.command import domain_argument, pass_session, subcommand
from pyxen.xm.session import Session


@subcommand("cd-eject", examples=["xm cd-eject win hdc"])
@domain_argument()
@click.argument("device", metavar="VDEV")
@pass_session
def command(session: Session, domain: str, device: str) -> None:
    """Take the disc out of a domain's CD-ROM drive.

    Whether or not the guest has locked its tray.
    """
    session.client.change_disc(domain, device)

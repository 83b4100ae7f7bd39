from __future__ import annotations

from pathlib import Path

import click

from pyxen.xm.command import domain_argument, pass_session, subcommand
from pyxen.xm.output import warn
from pyxen.xm.session import Session


@subcommand("cd-insert", examples=["xm cd-insert win hdc /srv/cd.iso"])
@domain_argument()
@click.argument("device", metavar="VDEV")
@click.argument("file", type=click.Path(path_type=Path))
@pass_session
def command(session: Session, domain: str, device: str, file: Path) -> None:
    """Put a disc into a domain's CD-ROM drive.

    In place of what is there, whether or not the guest has locked its tray. The drive must be in the description.
    """
    warn(session.client.change_disc(domain, device, str(file.absolute())).warnings)

from __future__ import annotations

import click

from pyxen.xm.command import pass_session, subcommand
from pyxen.xm.session import Session


@subcommand("dmesg", examples=["xm dmesg"])
@pass_session
def command(session: Session) -> None:
    """Print the hypervisor's messages.

    What the engines found on this machine, and the starts and ends of domains.
    """
    click.echo(session.client.dmesg(), nl=False)

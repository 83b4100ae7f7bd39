from __future__ import annotations

import click

from pyxen.xm.command import domain_argument, pass_session, size_argument, subcommand
from pyxen.xm.session import Session


@subcommand("block-resize", examples=["xm block-resize web xvdb 20G", "xm block-resize web xvdb 2048"])
@domain_argument()
@click.argument("device", metavar="VDEV")
@size_argument
@pass_session
def command(session: Session, domain: str, device: str, size: int) -> None:
    """Make a running domain's disk longer.

    SIZE is in MiB, or has a unit. The guest sees it at once; its file system is its own affair. No disk is made
    shorter.
    """
    session.client.resize_disk(domain, device, size << 20)

from __future__ import annotations

import click

from pyxen.xm.command import domain_argument, pass_session, subcommand
from pyxen.xm.session import Session


@subcommand(
    "block-detach",
    examples=["xm block-detach web xvdb", "xm block-detach web 51728", "xm block-detach --force web xvdb"],
)
@domain_argument()
@click.argument("device", metavar="VDEV")
@click.option("--force", "-f", is_flag=True, help="Take it away, whatever the guest does with it (Xen engine only).")
@pass_session
def command(session: Session, domain: str, device: str, force: bool) -> None:
    """Take a disk away from a domain.

    The guest is asked to let go of it, and waited for: 30 seconds, or what detach_timeout in xend.toml says. VDEV is
    its name, or its number as xm block-list shows it. What a guest still wants to write when its disk is taken away by
    --force is lost.
    """
    session.client.detach_disk(domain, device, force=force)

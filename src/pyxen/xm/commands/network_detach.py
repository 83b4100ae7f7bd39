from __future__ import annotations

import click

from pyxen.xm.command import domain_argument, pass_session, subcommand
from pyxen.xm.session import Session


@subcommand("network-detach", examples=["xm network-detach web 1", "xm network-detach web 00:16:3e:01:02:03"])
@domain_argument()
@click.argument("device", metavar="NUMBER|MAC")
@click.option("--force", "-f", is_flag=True, help="Take it away, whatever the guest does with it (Xen engine only).")
@pass_session
def command(session: Session, domain: str, device: str, force: bool) -> None:
    """Take a network interface away from a domain.

    The guest is asked to let go of it, and waited for: 30 seconds, or what detach_timeout in xend.toml says. The other
    interfaces keep their numbers.
    """
    session.client.detach_vif(domain, device, force=force)

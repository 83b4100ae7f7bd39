from __future__ import annotations

import click

from pyxen.xm.command import domain_argument, pass_session, rate_argument, subcommand
from pyxen.xm.session import Session


@subcommand("network-limit", examples=["xm network-limit web 0 10MB/s", "xm network-limit web 0 none"])
@domain_argument()
@click.argument("device", metavar="DEVID|MAC")
@rate_argument
@pass_session
def command(session: Session, domain: str, device: str, rate: int) -> None:
    """Limit how much a domain sends over a network interface.

    RATE is 10MB/s, 80Mb/s, or none for no limit. At once, while the domain runs, and after its next starts. Domains on
    QEMU can be limited on bridges, those of the Xen engine everywhere.
    """
    session.client.limit_vif(domain, device, rate)

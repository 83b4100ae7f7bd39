from __future__ import annotations

import click

from pyxen.xm import orders
from pyxen.xm.command import domains_argument, pass_session, subcommand
from pyxen.xm.session import Session


@subcommand("reboot", examples=["xm reboot web", "xm reboot -w web"])
@domains_argument()
@click.option("-a", "--all", "everything", is_flag=True, help="All domains but Domain-0.")
@click.option("-w", "--wait", is_flag=True, help="Wait until they run again.")
@click.option("--timeout", type=click.FloatRange(min=0), metavar="SECONDS", help="Fail if -w has waited for so long.")
@pass_session
def command(session: Session, domains: tuple[str, ...], everything: bool, wait: bool, timeout: float | None) -> int:
    """Ask domains to reboot."""
    client = session.client
    asked = orders.order(client, orders.targets(client, domains, everything), "reboot")
    return orders.wait_rebooted(client, asked, timeout) if wait else 0

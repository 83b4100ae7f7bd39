from __future__ import annotations

import click

from pyxen.xm import orders
from pyxen.xm.command import domains_argument, pass_session, subcommand
from pyxen.xm.session import Session


@subcommand("shutdown", examples=["xm shutdown web", "xm shutdown -w web", "xm shutdown -a -w --timeout 60"])
@domains_argument()
@click.option("-a", "--all", "everything", is_flag=True, help="All domains but Domain-0.")
@click.option("-w", "--wait", is_flag=True, help="Wait until they are gone (or with -R, back).")
@click.option("-R", "--reboot", is_flag=True, help="Reboot instead.")
@click.option("-H", "--halt", is_flag=True, help="Halt instead of powering off.")
@click.option("--timeout", type=click.FloatRange(min=0), metavar="SECONDS", help="Fail if -w has waited for so long.")
@pass_session
def command(
    session: Session,
    domains: tuple[str, ...],
    everything: bool,
    wait: bool,
    reboot: bool,
    halt: bool,
    timeout: float | None,
) -> int:
    """Ask domains to shut down.

    The guest decides: it may take its time, or not listen at all. xm destroy ends a domain that does not.
    """
    if reboot and halt:
        raise click.UsageError("Can't specify halt and reboot.", click.get_current_context())
    client = session.client
    reason = "reboot" if reboot else "halt" if halt else "poweroff"
    asked = orders.order(client, orders.targets(client, domains, everything), reason)
    if wait and reboot:
        return orders.wait_rebooted(client, asked, timeout)
    if wait:
        orders.wait_terminated(client, asked, timeout)
    return 0

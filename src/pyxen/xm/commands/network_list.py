from __future__ import annotations

import click

from pyxen.xm import tables
from pyxen.xm.command import domain_argument, format_option, pass_session, subcommand
from pyxen.xm.output import echo_json, echo_lines
from pyxen.xm.session import Session


@subcommand("network-list", examples=["xm network-list web", "xm network-list --format json web"])
@domain_argument()
@click.option("-l", "--long", is_flag=True, help="Each interface as a configuration file describes it.")
@format_option
@pass_session
def command(session: Session, domain: str, long: bool, form: str) -> None:
    """Show a domain's network interfaces.

    State is 4 for one that is attached, 5 for one that the guest has yet to let go of, and 3 for one of a clone that is
    not on its bridge: no agent in the guest has given it its own address. What isn't known is -1. Where the guest has
    an agent, it says which addresses it has.
    """
    from pyxen.config.render import render_vif

    found = session.client.devices(domain)
    if form == "json":
        guest = session.client.guest_interfaces(domain)
        echo_json(
            {
                "domid": found.domid,
                "name": found.name,
                "vifs": found.vifs,
                "agent": guest.agent,
                "interfaces": guest.interfaces,
            }
        )
    elif long:
        echo_lines(render_vif(each.vif) for each in found.vifs)
    else:
        echo_lines(tables.vifs(found, session.client.guest_interfaces(domain).interfaces))

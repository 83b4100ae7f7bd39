from __future__ import annotations

import click

from pyxen.xm import tables
from pyxen.xm.command import domain_argument, format_option, pass_session, subcommand
from pyxen.xm.output import echo_json, echo_lines
from pyxen.xm.session import Session


@subcommand("block-list", examples=["xm block-list web", "xm block-list -l web", "xm block-list --format json web"])
@domain_argument()
@click.option("-l", "--long", is_flag=True, help="Each disk as a configuration file describes it.")
@format_option
@pass_session
def command(session: Session, domain: str, long: bool, form: str) -> None:
    """Show a domain's disks.

    State is 4 for one that is attached, and 5 for one that the guest has yet to let go of. What isn't known is -1.
    """
    from pyxen.config.render import render_disk

    found = session.client.devices(domain)
    if form == "json":
        echo_json({"domid": found.domid, "name": found.name, "disks": found.disks})
    elif long:
        echo_lines(render_disk(each.disk) for each in found.disks)
    else:
        echo_lines(tables.disks(found))

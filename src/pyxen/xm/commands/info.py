from __future__ import annotations

import click
import msgspec

from pyxen.xm import tables
from pyxen.xm.command import format_option, pass_session, subcommand
from pyxen.xm.output import echo_json, echo_lines
from pyxen.xm.session import Session


@subcommand("info", examples=["xm info", "xm info -n", "xm info --format json"])
@click.option("-n", "--numa", is_flag=True, help="The CPUs and NUMA nodes too.")
@format_option
@pass_session
def command(session: Session, numa: bool, form: str) -> None:
    """Show what this machine is and can do.

    Memory is in MiB. "accelerator" is what a domain gets that does not choose one, "kvm" says why.
    """
    host = session.client.host()
    topology = session.client.topology() if numa else None
    if form == "json":
        echo_json(msgspec.to_builtins(host) | {"topology": topology} if topology else host)
        return
    echo_lines(tables.info(host))
    if topology:
        echo_lines(tables.topology(topology))

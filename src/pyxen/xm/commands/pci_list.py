from __future__ import annotations

from pyxen.xm import tables
from pyxen.xm.command import domain_argument, format_option, pass_session, subcommand
from pyxen.xm.output import echo_json, echo_lines
from pyxen.xm.session import Session


@subcommand("pci-list", examples=["xm pci-list web", "xm pci-list --format json web"])
@domain_argument()
@format_option
@pass_session
def command(session: Session, domain: str, form: str) -> None:
    """Show a domain's PCI devices of the host.

    Vdev is the slot and function that the guest sees it in; from 20 on, a port of q35: 20 the first, 21 the second.
    """
    found = session.client.devices(domain)
    if form == "json":
        echo_json({"domid": found.domid, "name": found.name, "pci": found.pci})
    else:
        echo_lines(tables.pci(found))

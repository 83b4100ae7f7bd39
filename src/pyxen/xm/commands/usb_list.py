from __future__ import annotations

from pyxen.xm import tables
from pyxen.xm.command import domain_argument, format_option, pass_session, subcommand
from pyxen.xm.output import echo_json, echo_lines
from pyxen.xm.session import Session


@subcommand("usb-list", examples=["xm usb-list web", "xm usb-list --format json web"])
@domain_argument()
@format_option
@pass_session
def command(session: Session, domain: str, form: str) -> None:
    """Show a domain's USB devices."""
    found = session.client.devices(domain)
    if form == "json":
        echo_json({"domid": found.domid, "name": found.name, "usb": found.usb})
    else:
        echo_lines(tables.usb(found))

from __future__ import annotations

from pyxen.xm import tables
from pyxen.xm.command import format_option, pass_session, subcommand
from pyxen.xm.output import echo_json, echo_lines
from pyxen.xm.session import Session


@subcommand("usb-list-assignable-devices", examples=["xm usb-list-assignable-devices"])
@format_option
@pass_session
def command(session: Session, form: str) -> None:
    """Show the host's USB devices that domains may have.

    Hubs are left out, and so is what a domain has or the host uses (a disk that is mounted, a network interface that is
    up); --format json has these, too.
    """
    found = session.client.host_usb()
    if form == "json":
        echo_json(found)
    else:
        echo_lines(tables.host_usb(each for each in found.devices if each.domain is None and not each.problem))

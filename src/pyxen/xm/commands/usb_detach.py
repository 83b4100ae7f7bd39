from __future__ import annotations

import click

from pyxen.xm.command import domain_argument, pass_session, subcommand
from pyxen.xm.session import Session


@subcommand("usb-detach", examples=["xm usb-detach web 0", "xm usb-detach web host:046d:c077"])
@domain_argument()
@click.argument("device", metavar="DEVICE")
@pass_session
def command(session: Session, domain: str, device: str) -> None:
    """Unplug a USB device of a domain.

    DEVICE is its number as xm usb-list shows it, or BUS.ADDRESS or VENDOR:PRODUCT of one of the host's. It is pulled
    out as if by hand: what the guest has not yet written to a disk is lost.
    """
    session.client.detach_usb(domain, device)

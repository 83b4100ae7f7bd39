from __future__ import annotations

import click

from pyxen.xm.command import domain_argument, pass_session, subcommand
from pyxen.xm.output import warn
from pyxen.xm.session import Session


@subcommand(
    "usb-attach",
    examples=[
        "xm usb-attach web hostbus=1 hostaddr=3",
        "xm usb-attach web host:046d:c077",
        "xm usb-attach web redir=192.0.2.7:4000",
        "xm usb-attach web disk:/srv/stick.img",
    ],
)
@domain_argument()
@click.argument("words", metavar="DEVICE", nargs=-1, required=True)
@pass_session
def command(session: Session, domain: str, words: tuple[str, ...]) -> None:
    """Give a domain a USB device.

    For hvm domains, which QEMU runs. A running one has it at once, and at its next starts; a controller comes with the
    first (or with usb=1 in the description). DEVICE is what usbdev has in a configuration file, its parts as words of
    their own or joined with commas: a device of the host by place or by vendor and product, one elsewhere by usbredir,
    or a disk's image as a stick.
    """
    from pyxen.config.usb import parse_usb

    warn(session.client.attach_usb(domain, parse_usb(",".join(words))).warnings)

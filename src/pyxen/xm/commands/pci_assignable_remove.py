from __future__ import annotations

import click

from pyxen.xm.command import pass_session, subcommand
from pyxen.xm.session import Session


@subcommand("pci-assignable-remove", examples=["xm pci-assignable-remove 03:00.0"])
@click.argument("devices", metavar="BDF...", nargs=-1, required=True)
@click.option("-r", "--rebind", is_flag=True, help="As xl has it; here its driver gets it back in any case.")
@pass_session
def command(session: Session, devices: tuple[str, ...], rebind: bool) -> None:
    """Give a PCI device back to its driver."""
    for each in devices:
        session.client.give_pci_back(each)

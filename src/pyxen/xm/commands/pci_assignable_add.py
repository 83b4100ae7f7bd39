from __future__ import annotations

import click

from pyxen.xm.command import pass_session, subcommand
from pyxen.xm.session import Session


@subcommand("pci-assignable-add", examples=["xm pci-assignable-add 03:00.0", "xm pci-assignable-add 03:00.0 03:00.1"])
@click.argument("devices", metavar="BDF...", nargs=-1, required=True)
@pass_session
def command(session: Session, devices: tuple[str, ...]) -> None:
    """Take a PCI device from its driver, for domains.

    It is bound to vfio-pci, also after xend's and the host's restart, until xm pci-assignable-remove. Refused is what
    the host uses: a disk that is mounted, a network interface that is up, the screen; and all of them without an IOMMU.
    """
    for each in devices:
        session.client.make_pci_assignable(each)

from __future__ import annotations

import click

from pyxen.xm.command import domain_argument, pass_session, subcommand
from pyxen.xm.output import warn
from pyxen.xm.session import Session


@subcommand(
    "pci-attach",
    examples=["xm pci-attach web 03:00.0", "xm pci-attach web 0000:03:00.0 05", "xm pci-attach -o seize=1 web 03:00.0"],
)
@click.option("-o", "--options", multiple=True, metavar="KEY=VALUE", help="An option of the device, such as seize=1.")
@domain_argument()
@click.argument("device", metavar="BDF")
@click.argument("slot", metavar="[VSLOT]", required=False)
@pass_session
def command(session: Session, options: tuple[str, ...], domain: str, device: str, slot: str | None) -> None:
    """Give a domain a PCI device of the host.

    For hvm domains, which QEMU runs. A running one has it at once, and at its next starts. The device must be
    assignable (xm pci-list-assignable-devices), or seize=1 be said. VSLOT is where it is on the guest's bus, in
    hexadecimal. All of the guest's memory is locked from then on, and it can be neither saved nor migrated.
    """
    from pyxen.config.pci import parse_pci

    words = [device if slot is None else f"{device}@{slot}", *options]
    warn(session.client.attach_pci(domain, parse_pci(",".join(words))).warnings)

from __future__ import annotations

import click

from pyxen.xm.command import domain_argument, pass_session, subcommand
from pyxen.xm.session import Session


@subcommand("pci-detach", examples=["xm pci-detach web 03:00.0"])
@domain_argument()
@click.argument("device", metavar="BDF")
@pass_session
def command(session: Session, domain: str, device: str) -> None:
    """Take a PCI device of the host away from a domain.

    The guest is asked to let go of it, and waited for: 30 seconds, or what detach_timeout in xend.toml says. It stays
    assignable; xm pci-assignable-remove gives it back to the host.
    """
    session.client.detach_pci(domain, device)

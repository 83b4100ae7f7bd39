from __future__ import annotations

import click

from pyxen.xm.command import domain_argument, pass_session, subcommand
from pyxen.xm.session import Session


@subcommand("io-weight", examples=["xm io-weight web 200"])
@domain_argument()
@click.argument("weight", type=click.IntRange(1, 10000))
@pass_session
def command(session: Session, domain: str, weight: int) -> None:
    """Set a domain's part of the host's busy disks.

    Where disks are busy, domains get at them in proportion to their weights: one with 200 twice as much as one with
    100, which is usual. At once, and after its next starts; by cgroup v2 and its io controller, of v1 there is none.
    """
    session.client.set_io_weight(domain, weight)

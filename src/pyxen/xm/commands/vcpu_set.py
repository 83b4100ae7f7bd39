from __future__ import annotations

import click

from pyxen.xm.command import domain_argument, pass_session, subcommand
from pyxen.xm.session import Session


@subcommand("vcpu-set", examples=["xm vcpu-set web 4", "xm vcpu-set web 1"])
@domain_argument()
@click.argument("count", metavar="VCPUS", type=click.IntRange(min=1))
@pass_session
def command(session: Session, domain: str, count: int) -> None:
    """Set how many VCPUs a domain uses.

    From 1 to the maxvcpus that it was started with. The guest does it in its own time: xm vcpu-list shows which are
    online. A managed domain that does not run starts with so many the next time.
    """
    session.client.set_vcpus(domain, count)

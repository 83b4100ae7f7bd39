from __future__ import annotations

import click

from pyxen.xm.command import domain_argument, pass_session, subcommand
from pyxen.xm.output import warn
from pyxen.xm.session import Session


@subcommand("cpupool-migrate", examples=["xm cpupool-migrate web fast", "xm cpupool-migrate web Pool-0"])
@domain_argument()
@click.argument("pool")
@pass_session
def command(session: Session, domain: str, pool: str) -> None:
    """Move a domain to another pool.

    A VCPU that is pinned to CPUs which the pool lacks may run on all of the pool's.
    """
    warn(session.client.set_pool(domain, pool).warnings)

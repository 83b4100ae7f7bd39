from __future__ import annotations

import click

from pyxen.xm.command import pass_session, subcommand
from pyxen.xm.session import Session


@subcommand("cpupool-destroy", examples=["xm cpupool-destroy fast"])
@click.argument("pool")
@pass_session
def command(session: Session, pool: str) -> None:
    """End a pool without domains.

    Its CPUs are free then: xm cpupool-cpu-add puts them into another one.
    """
    session.client.destroy_cpupool(pool)

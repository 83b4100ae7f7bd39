from __future__ import annotations

import click

from pyxen.xm.command import pass_session, subcommand
from pyxen.xm.session import Session


@subcommand("cpupool-cpu-remove", examples=["xm cpupool-cpu-remove Pool-0 2-3", "xm cpupool-cpu-remove fast node:1"])
@click.argument("pool")
@click.argument("cpus", metavar="CPU|node:NODE")
@pass_session
def command(session: Session, pool: str, cpus: str) -> None:
    """Take CPUs out of a pool.

    They are free then. A pool with domains keeps one, and so does Pool-0. Domains move to the rest at once.
    """
    session.client.remove_cpus(pool, cpus.lower())

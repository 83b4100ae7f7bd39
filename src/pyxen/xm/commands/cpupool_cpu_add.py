from __future__ import annotations

import click

from pyxen.xm.command import pass_session, subcommand
from pyxen.xm.session import Session


@subcommand("cpupool-cpu-add", examples=["xm cpupool-cpu-add Pool-0 3", "xm cpupool-cpu-add fast node:1"])
@click.argument("pool")
@click.argument("cpus", metavar="CPU|node:NODE")
@pass_session
def command(session: Session, pool: str, cpus: str) -> None:
    """Put free CPUs into a pool.

    CPU is a number, a range, or node:0 for the CPUs of a NUMA node.
    """
    session.client.add_cpus(pool, cpus.lower())

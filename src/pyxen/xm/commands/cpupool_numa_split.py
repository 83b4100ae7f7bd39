from __future__ import annotations

from pyxen.xm.command import pass_session, subcommand
from pyxen.xm.session import Session


@subcommand("cpupool-numa-split", examples=["xm cpupool-numa-split"])
@pass_session
def command(session: Session) -> None:
    """Make a pool of each NUMA node.

    Pool-0 keeps the first node's CPUs, with all domains; the others are called Pool-node1 and so on.
    """
    session.client.split_cpupools()

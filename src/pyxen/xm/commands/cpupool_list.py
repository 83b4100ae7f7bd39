from __future__ import annotations

import click

from pyxen.errors import NotFound
from pyxen.xm import tables
from pyxen.xm.command import format_option, pass_session, subcommand
from pyxen.xm.output import echo_json, echo_lines
from pyxen.xm.session import Session


@subcommand("cpupool-list", examples=["xm cpupool-list", "xm cpupool-list -c", "xm cpupool-list fast"])
@click.argument("pool", required=False)
@click.option("-c", "--cpus", is_flag=True, help="Show which CPUs the pools have.")
@format_option
@pass_session
def command(session: Session, pool: str | None, cpus: bool, form: str) -> None:
    """Show the CPU pools.

    Each of the host's CPUs is in one pool, or free. A domain runs on its pool's CPUs (pool=... in its description), and
    vcpu-pin chooses among these. The host's own processes, Domain-0, run everywhere.
    """
    found = session.client.cpupools()
    listed = [each for each in found.pools if pool in (None, each.name)]
    if not listed:
        raise NotFound(f"Pool '{pool}' does not exist.", hint="What there is: xm cpupool-list")
    if form == "json":
        echo_json({"pools": listed, "free": found.free})
    else:
        echo_lines(tables.cpupool_cpus(listed) if cpus else tables.cpupools(listed))

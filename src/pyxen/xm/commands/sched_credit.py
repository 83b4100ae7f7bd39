from __future__ import annotations

import click

from pyxen.xm import tables
from pyxen.xm.command import complete_domains, format_option, pass_session, subcommand
from pyxen.xm.output import echo_json, echo_lines
from pyxen.xm.session import Session


@subcommand(
    "sched-credit",
    examples=["xm sched-credit", "xm sched-credit -d web -w 512", "xm sched-credit -d web -c 150"],
)
@click.option("-d", "--domain", metavar="DOMAIN", shell_complete=complete_domains, help="The domain; without it, all.")
@click.option("-w", "--weight", type=click.IntRange(1, 65535), help="Set its weight; 256 is usual.")
@click.option("-c", "--cap", type=click.IntRange(0, 51200), help="Set its cap, in percent of one CPU; 0: none.")
@format_option
@pass_session
def command(session: Session, domain: str | None, weight: int | None, cap: int | None, form: str) -> None:
    """Show or set domains' weights and caps.

    Where CPUs are busy, domains get time in proportion to their weights: one with 512 twice as much as one with 256. A
    cap is the most that a domain gets, also where CPUs are idle: 50 is half a CPU, 200 are two. Both count the whole of
    its process, so what it does for the guest's disks and networks too.
    """
    client = session.client
    if weight is not None or cap is not None:
        if domain is None:
            raise click.UsageError("No domain given.")
        client.set_credit(domain, weight=weight, cap=cap)
        return
    listed = client.domains() if domain is None else [client.domain(domain)]
    if form == "json":
        rows = [(each, each.config) for each in listed]
        echo_json(
            {
                "domains": [
                    {
                        "domid": each.domid,
                        "name": each.name,
                        "cpu_weight": config.cpu_weight if config else 256,
                        "cpu_cap": config.cpu_cap if config else 0,
                    }
                    for each, config in rows
                ]
            }
        )
    else:
        echo_lines(tables.credits(listed))

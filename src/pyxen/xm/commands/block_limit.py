from __future__ import annotations

import click

from pyxen.xm.command import domain_argument, pass_session, rate_option, subcommand
from pyxen.xm.session import Session


@subcommand(
    "block-limit",
    examples=["xm block-limit web xvda --rate 10MB/s", "xm block-limit web xvda --rate none --iops 200"],
)
@domain_argument()
@click.argument("device", metavar="VDEV")
@rate_option("--rate", help="The most that it reads and writes: 10MB/s, 80Mb/s, or none.")
@click.option("--iops", type=click.IntRange(0, 10**9), help="The most requests a second; 0: no limit.")
@pass_session
def command(session: Session, domain: str, device: str, rate: int | None, iops: int | None) -> None:
    """Limit how much a disk reads and writes.

    At once, while the domain runs, and after its next starts. A tenth of a second may be made up for. What isn't given
    stays as it is; xm block-list -l shows what holds. An image's root disk is limited until the domain stops.
    """
    if rate is None and iops is None:
        raise click.UsageError("Neither --rate nor --iops given.")
    session.client.limit_disk(domain, device, rate, iops)

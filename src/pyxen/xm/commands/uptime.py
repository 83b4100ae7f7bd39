from __future__ import annotations

import time

import click

from pyxen.api import Domain
from pyxen.client import Client
from pyxen.xm import tables
from pyxen.xm.command import domains_argument, format_option, pass_session, subcommand
from pyxen.xm.output import echo_json, echo_lines
from pyxen.xm.session import Session


@subcommand("uptime", examples=["xm uptime", "xm uptime -s web"])
@domains_argument()
@click.option("-s", "--short", is_flag=True, help="One sentence for each, without a heading.")
@format_option
@pass_session
def command(session: Session, domains: tuple[str, ...], short: bool, form: str) -> None:
    """Show for how long domains have been running."""
    client = session.client
    listed = [client.domain(ref) for ref in domains] if domains else client.domains()
    now = time.time()
    up = [(each, _seconds(client, each, now)) for each in listed]
    if form == "json":
        echo_json({"domains": [{"name": d.name, "domid": d.domid, "uuid": d.uuid, "uptime_s": s} for d, s in up]})
    elif short:
        echo_lines(tables.uptime_short(up, now))
    else:
        echo_lines(tables.uptime(up))


def _seconds(client: Client, domain: Domain, now: float) -> float:
    if domain.domid == 0:
        return client.host().uptime_s
    if domain.domid is None or domain.started_at is None:
        return 0.0
    return max(0.0, now - domain.started_at)

from __future__ import annotations

from pyxen.xm import tables
from pyxen.xm.command import domains_argument, format_option, pass_session, subcommand
from pyxen.xm.output import echo_json, echo_lines
from pyxen.xm.session import Session


@subcommand("vcpu-list", examples=["xm vcpu-list", "xm vcpu-list web"])
@domains_argument()
@format_option
@pass_session
def command(session: Session, domains: tuple[str, ...], form: str) -> None:
    """Show the domains' virtual CPUs.

    CPU is the host's CPU that a VCPU ran on last. State is three letters: r running, b blocked, p paused; --p is a
    VCPU that is offline.
    """
    client = session.client
    refs = domains or tuple(each.uuid if each.domid != 0 else "0" for each in client.domains())
    lists = [client.vcpus(ref) for ref in refs]
    if form == "json":
        echo_json({"domains": lists})
    else:
        echo_lines(tables.vcpus(lists, client.host().nr_cpus))

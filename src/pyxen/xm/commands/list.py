from __future__ import annotations

import click

from pyxen.api import DomainList, PowerState
from pyxen.xm import tables
from pyxen.xm.command import domains_argument, format_option, pass_session, subcommand
from pyxen.xm.output import colour_state, coloured, echo_json, echo_lines
from pyxen.xm.session import Session


@subcommand("list", examples=["xm list", "xm list web db", "xm list --state running", "xm list -l web"])
@domains_argument()
@click.option("-l", "--long", "long_form", is_flag=True, help="All that xend knows, as JSON.")
@click.option("--state", type=click.Choice([*map(str, PowerState), "all"]), help="Only domains in this state.")
@format_option
@pass_session
def command(session: Session, domains: tuple[str, ...], long_form: bool, state: str | None, form: str) -> None:
    """Show the domains.

    State is six letters, each shown when it holds: r running, b blocked (waiting for something to do), p paused,
    s shut down, c crashed, d dying. Mem is in MiB, Time the CPU time used, in seconds. A managed domain that does not
    run has no ID and no State.
    """
    if state and domains:
        raise click.UsageError("say either domains or --state, not both.", click.get_current_context())
    client = session.client
    listed = [client.domain(ref) for ref in domains] if domains else client.domains()
    if state and state != "all":
        listed = [each for each in listed if each.power_state == state]
    if long_form or form == "json":
        echo_json(DomainList(listed))
    elif coloured():
        echo_lines(tables.domains(listed, colour_state))
    else:
        echo_lines(tables.domains(listed))

from __future__ import annotations

import click

from pyxen.xm.command import domain_argument, pass_session, subcommand
from pyxen.xm.session import Session


@subcommand("console", examples=["xm console web", "echo 'uname -a' | xm console web", "xm console --wait web"])
@domain_argument()
@click.option("-w", "--wait", is_flag=True, help="Stay when the domain restarts.")
@click.option(
    "--drain",
    default=1.0,
    show_default=True,
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="After the end of piped input, leave when the guest has been quiet for so long.",
)
@pass_session
def command(session: Session, domain: str, wait: bool, drain: float) -> None:
    """Connect to a domain's console.

    On a terminal, every key goes to the guest; Ctrl-] leaves. It starts with the last 64 KiB of output. Several
    consoles of one domain may be open. In a script, standard input is typed into the guest.
    """
    from pyxen.xm.terminal import attach

    with session.client.console(domain, wait=wait) as console:
        attach(console, drain_s=drain)

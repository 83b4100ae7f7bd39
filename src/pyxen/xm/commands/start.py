from __future__ import annotations

import click

from pyxen.api import Domain
from pyxen.xm.command import domain_argument, pass_session, subcommand
from pyxen.xm.output import warn
from pyxen.xm.session import Session
from pyxen.xm.starting import with_console


@subcommand("start", examples=["xm start web", "xm start -c web"])
@domain_argument()
@click.option("-p", "--paused", is_flag=True, help="Leave it paused; xm unpause lets it run.")
@click.option("-c", "--console", "--console_autoconnect", "console", is_flag=True, help="Connect to its console.")
@pass_session
def command(session: Session, domain: str, paused: bool, console: bool) -> None:
    """Start a managed domain."""

    def start(start_paused: bool) -> Domain:
        return session.client.start(domain, paused=start_paused)

    def started(now: Domain) -> None:
        warn(now.warnings)

    if console:
        with_console(session.client, start, paused=paused, started=started)
    else:
        started(start(paused))

from __future__ import annotations

import click

from pyxen.api import Domain, PowerState
from pyxen.xm.command import domain_argument, pass_session, subcommand
from pyxen.xm.session import Session

_WORDS = {
    PowerState.HALTED: "shutoff",
    PowerState.PAUSED: "paused",
    PowerState.SUSPENDED: "suspended",
    PowerState.SHUTDOWN: "shutdown",
    PowerState.CRASHED: "crashed",
}


def word(domain: Domain) -> str:
    """A domain's state in a word."""
    if domain.power_state in _WORDS:
        return _WORDS[domain.power_state]
    if "d" in domain.state:
        return "dying"
    return "idle" if "b" in domain.state else "running"


@subcommand("domstate", examples=["xm domstate web"])
@domain_argument()
@pass_session
def command(session: Session, domain: str) -> None:
    """Print a domain's state in a word.

    One of running, idle, paused, shutdown, crashed, dying, and shutoff for a managed domain that does not run.
    """
    click.echo(word(session.client.domain(domain)))

from __future__ import annotations

import click

from pyxen.api import Trigger
from pyxen.xm.command import domain_argument, pass_session, subcommand
from pyxen.xm.session import Session


@subcommand("trigger", examples=["xm trigger web nmi", "xm trigger web reset"])
@domain_argument()
@click.argument("trigger", type=click.Choice([*map(str, Trigger)]), metavar="TRIGGER")
@click.argument("vcpu", type=click.IntRange(min=0), required=False)
@pass_session
def command(session: Session, domain: str, trigger: str, vcpu: int | None) -> None:
    """Send a domain an event of hardware.

    TRIGGER is nmi, reset, power, init, sleep or s3resume; each engine says which it can't send, and why. Without a VCPU
    an nmi goes to all. After a reset the domain's on_reboot decides.
    """
    session.client.trigger(domain, Trigger(trigger), vcpu)

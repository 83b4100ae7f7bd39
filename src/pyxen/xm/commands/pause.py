from __future__ import annotations

from pyxen.xm.command import domain_argument, pass_session, subcommand
from pyxen.xm.session import Session


@subcommand("pause", examples=["xm pause web"])
@domain_argument()
@pass_session
def command(session: Session, domain: str) -> None:
    """Stop a domain's VCPUs.

    It keeps its memory and uses no CPU time until xm unpause.
    """
    session.client.pause(domain)

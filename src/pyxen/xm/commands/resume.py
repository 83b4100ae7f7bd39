from __future__ import annotations

from pyxen.xm.command import domain_argument, pass_session, subcommand
from pyxen.xm.session import Session


@subcommand("resume", examples=["xm resume web"])
@domain_argument()
@pass_session
def command(session: Session, domain: str) -> None:
    """Let a suspended domain go on."""
    session.client.resume(domain)

from __future__ import annotations

from pyxen.xm.command import domain_argument, pass_session, subcommand
from pyxen.xm.session import Session


@subcommand("unpause", examples=["xm unpause web"])
@domain_argument()
@pass_session
def command(session: Session, domain: str) -> None:
    """Let a paused domain run on."""
    session.client.unpause(domain)

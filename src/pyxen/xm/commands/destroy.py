from __future__ import annotations

from pyxen.xm.command import domain_argument, pass_session, subcommand
from pyxen.xm.session import Session


@subcommand("destroy", examples=["xm destroy web"])
@domain_argument()
@pass_session
def command(session: Session, domain: str) -> None:
    """End a domain at once.

    Like pulling the plug: the guest is not asked, and what it had not written is lost. xm shutdown asks.
    """
    session.client.destroy(domain)

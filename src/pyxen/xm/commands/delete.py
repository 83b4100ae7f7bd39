from __future__ import annotations

from pyxen.xm.command import domain_argument, pass_session, subcommand
from pyxen.xm.session import Session


@subcommand("delete", examples=["xm delete web"])
@domain_argument()
@pass_session
def command(session: Session, domain: str) -> None:
    """Forget a managed domain.

    It must not be running. Its disks stay.
    """
    session.client.delete(domain)

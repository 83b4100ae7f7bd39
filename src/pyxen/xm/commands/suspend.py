from __future__ import annotations

from pyxen.xm.command import domain_argument, pass_session, subcommand
from pyxen.xm.session import Session


@subcommand("suspend", examples=["xm suspend web"])
@domain_argument()
@pass_session
def command(session: Session, domain: str) -> None:
    """Have a domain's guest put itself in order and stand still.

    Its kernel freezes its processes, lets its devices come to rest and stops; the domain keeps its memory and uses no
    CPU time until xm resume. A guest under QEMU can't be asked; xm pause works for any.
    """
    session.client.suspend(domain)

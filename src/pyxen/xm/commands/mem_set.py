from __future__ import annotations

from pyxen.xm.command import domain_argument, pass_session, size_argument, subcommand
from pyxen.xm.session import Session


@subcommand("mem-set", examples=["xm mem-set web 128", "xm mem-set web 1g"])
@domain_argument()
@size_argument
@pass_session
def command(session: Session, domain: str, size: int) -> None:
    """Set how much memory a domain has.

    SIZE is in MiB, or with a unit: 512m, 1g. It can't be more than xm mem-max allows. The guest gives memory back, or
    takes some, in its own time: xm list shows how much it has.
    """
    session.client.set_memory(domain, size)

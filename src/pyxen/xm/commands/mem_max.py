from __future__ import annotations

from pyxen.xm.command import domain_argument, pass_session, size_argument, subcommand
from pyxen.xm.session import Session


@subcommand("mem-max", examples=["xm mem-max web 512", "xm mem-max web 2g"])
@domain_argument()
@size_argument
@pass_session
def command(session: Session, domain: str, size: int) -> None:
    """Set how much memory a domain may be given.

    SIZE is in MiB, or with a unit: 512m, 1g. It can't be less than xm mem-set has set, nor, while the domain runs, more
    than it was started for.
    """
    session.client.set_maxmem(domain, size)

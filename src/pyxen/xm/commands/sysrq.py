from __future__ import annotations

import click

from pyxen.xm.command import domain_argument, pass_session, subcommand
from pyxen.xm.session import Session


@subcommand("sysrq", examples=["xm sysrq web s", "xm sysrq web c"])
@domain_argument()
@click.argument("letter")
@pass_session
def command(session: Session, domain: str, letter: str) -> None:
    """Press SysRq and a key in a domain.

    Linux knows s (sync), b (reset), c (crash), t (list tasks) and more. Which of them it obeys is set in the guest, in
    /proc/sys/kernel/sysrq; what it has to say comes on its console.
    """
    if len(letter) != 1 or not "!" <= letter <= "~":
        raise click.UsageError(f"'{letter}' is not one letter or digit.", click.get_current_context())
    session.client.sysrq(domain, letter)

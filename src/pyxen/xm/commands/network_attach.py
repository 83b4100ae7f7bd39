from __future__ import annotations

import click

from pyxen.xm.command import domain_argument, pass_session, subcommand
from pyxen.xm.output import warn
from pyxen.xm.session import Session


@subcommand(
    "network-attach",
    examples=["xm network-attach web", "xm network-attach web mac=00:16:3e:01:02:03 bridge=br0"],
)
@domain_argument()
@click.argument("words", metavar="[KEY=VALUE]...", nargs=-1)
@pass_session
def command(session: Session, domain: str, words: tuple[str, ...]) -> None:
    """Give a domain a network interface.

    A running one has it at once, and at its next starts. KEY is what an entry of vif has in a configuration file;
    without bridge it is on a user-mode network.
    """
    from pyxen.config.vif import parse_vif

    warnings: list[str] = []
    vif = parse_vif(",".join(words), warn=warnings.append)
    warn([*warnings, *session.client.attach_vif(domain, vif).warnings])

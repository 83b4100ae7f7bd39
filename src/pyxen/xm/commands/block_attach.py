from __future__ import annotations

import click

from pyxen.xm.command import domain_argument, pass_session, subcommand
from pyxen.xm.output import warn
from pyxen.xm.session import Session


@subcommand(
    "block-attach",
    examples=[
        "xm block-attach web file:/srv/more.img xvdb w",
        "xm block-attach web format=qcow2 vdev=xvdc access=ro target=/srv/data.qcow2",
    ],
)
@domain_argument()
@click.argument("words", metavar="BACKDEV FRONTDEV MODE | DISKSPEC...", nargs=-1, required=True)
@pass_session
def command(session: Session, domain: str, words: tuple[str, ...]) -> None:
    """Give a domain a disk.

    A running one has it at once, and at its next starts. The disk is described as in a configuration file, its parts
    as words of their own or joined with commas. Nothing is attached that another domain uses, unless with mode w!.
    """
    from pyxen.config.disk import parse_disk

    warn(session.client.attach_disk(domain, parse_disk(",".join(words))).warnings)

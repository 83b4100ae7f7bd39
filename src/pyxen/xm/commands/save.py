from __future__ import annotations

from pathlib import Path

import click

from pyxen.xm.command import domain_argument, pass_session, subcommand
from pyxen.xm.session import Session


@subcommand("save", examples=["xm save web /var/tmp/web.saved", "xm save -c web /var/tmp/web.saved"])
@click.option("-c", "--checkpoint", is_flag=True, help="Let the domain go on afterwards.")
@domain_argument()
@click.argument("file", type=click.Path(path_type=Path))
@pass_session
def command(session: Session, domain: str, file: Path, checkpoint: bool) -> None:
    """Save a domain's state to a file.

    xm restore starts it again from there. The domain ends, unless it is a checkpoint. Its disks are not in the file: a
    domain that goes on after a checkpoint changes them, and what is restored then finds other disks than it left.
    Nothing is lost if there is no room: the domain goes on. A guest of the Xen engine puts itself in order first, which
    one that is paused can't: xm unpause it before.
    """
    session.client.save(domain, str(file.absolute()), checkpoint=checkpoint)

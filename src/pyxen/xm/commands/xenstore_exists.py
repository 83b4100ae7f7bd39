from __future__ import annotations

import click

from pyxen.errors import NotFound
from pyxen.xm.command import pass_session, subcommand
from pyxen.xm.session import Session


@subcommand("xenstore-exists", examples=["xm xenstore-exists /local/domain/3/device/vif && echo it has networks"])
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@pass_session
def command(session: Session, paths: tuple[str, ...]) -> int:
    """Say by the exit status whether nodes are there.

    0 if all of them are, 1 if one is not.
    """
    try:
        for path in paths:
            session.client.store_node(path)
    except NotFound:
        return 1
    return 0

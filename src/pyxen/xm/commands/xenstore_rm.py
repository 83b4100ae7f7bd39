from __future__ import annotations

import click

from pyxen.xm.command import pass_session, subcommand
from pyxen.xm.session import Session


@subcommand("xenstore-rm", examples=["xm xenstore-rm /local/domain/3/data/note", "xm xenstore-rm -t data/a/b"])
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@click.option("-t", "--tidy", is_flag=True, help="Remove nodes above too, as long as they have no value and no child.")
@pass_session
def command(session: Session, paths: tuple[str, ...], tidy: bool) -> None:
    """Remove nodes, each with all below it.

    One that is not there is no error.
    """
    for path in paths:
        session.client.store_remove(path, tidy=tidy)

from __future__ import annotations

import click

from pyxen.xm.command import pass_session, subcommand
from pyxen.xm.session import Session


@subcommand("xenstore-chmod", examples=["xm xenstore-chmod /local/domain/3/data n3", "xm xenstore-chmod -r data n0 r3"])
@click.argument("path")
@click.argument("permissions", metavar="PERMISSION...", nargs=-1, required=True)
@click.option("-r", "recurse", is_flag=True, help="All nodes below it too.")
@click.option("-u", "upwards", is_flag=True, help="The nodes above it too, as far as they are the same domain's part.")
@pass_session
def command(session: Session, path: str, permissions: tuple[str, ...], recurse: bool, upwards: bool) -> None:
    """Say who may read and write a node.

    A letter and a domain's id each: n none, r read, w write, b both. The first names the owner, who may do everything;
    its letter is what domains without an entry of their own may do.
    """
    session.client.store_permissions(path, permissions, recurse=recurse, upwards=upwards)

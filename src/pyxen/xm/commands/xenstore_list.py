from __future__ import annotations

import click

from pyxen.xm.command import format_option, pass_session, subcommand
from pyxen.xm.output import echo_json, echo_lines
from pyxen.xm.session import Session


@subcommand("xenstore-list", examples=["xm xenstore-list /local/domain", "xm xenstore-list -p /vm"])
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@click.option("-p", "prefix", is_flag=True, help="Print whole paths.")
@format_option
@pass_session
def command(session: Session, paths: tuple[str, ...], prefix: bool, form: str) -> None:
    """Print the names of a node's children."""
    found = {path: session.client.store_node(path).children for path in paths}
    if form == "json":
        echo_json({"children": found})
        return
    for path, names in found.items():
        echo_lines(f"{path.rstrip('/')}/{name}" if prefix else name for name in names)

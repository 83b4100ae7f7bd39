from __future__ import annotations

import click

from pyxen.xm.command import format_option, pass_session, subcommand
from pyxen.xm.output import echo_json
from pyxen.xm.session import Session


@subcommand("xenstore-read", examples=["xm xenstore-read /local/domain/3/name", "xm xenstore-read -p domid name"])
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@click.option("-p", "prefix", is_flag=True, help="Print the path before each value.")
@click.option("-R", "--raw", is_flag=True, help="Print values as they are, with nothing escaped or added.")
@format_option
@pass_session
def command(session: Session, paths: tuple[str, ...], prefix: bool, raw: bool, form: str) -> None:
    """Print values.

    One a line; bytes that can't be printed are \\xNN, a backslash is doubled.
    """
    if form == "json":
        echo_json({"values": {path: session.client.store_node(path).value for path in paths}})
        return
    for path in paths:
        if raw:
            click.echo(session.client.store_read(path), nl=False)
        else:
            click.echo(f"{path}: " * prefix + session.client.store_node(path).value)

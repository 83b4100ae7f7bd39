from __future__ import annotations

import click

from pyxen.xm.command import format_option, pass_session, subcommand
from pyxen.xm.session import Session


@subcommand("xenstore-watch", examples=["xm xenstore-watch /local/domain/3", "xm xenstore-watch -n 2 @releaseDomain"])
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@click.option("-n", "--count", type=click.IntRange(min=1), metavar="N", help="Stop after so many lines.")
@format_option
@pass_session
def command(session: Session, paths: tuple[str, ...], count: int | None, form: str) -> None:
    """Show what changes, as it changes.

    The path of each node at or below PATH that is written, removed or made, or whose permissions change; each PATH
    itself once at the start. @introduceDomain and @releaseDomain stand for domains that come and go.
    """
    import msgspec

    for number, event in enumerate(session.client.store_watch(paths), 1):
        click.echo(msgspec.json.encode(event) if form == "json" else event.path)
        if number == count:
            return

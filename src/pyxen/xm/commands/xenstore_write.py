from __future__ import annotations

import os

import click

from pyxen.abi.xs_text import unescape
from pyxen.xm.command import pass_session, subcommand
from pyxen.xm.session import Session


@subcommand("xenstore-write", examples=["xm xenstore-write /local/domain/3/data/note 'two words'"])
@click.argument("words", metavar="PATH VALUE...", nargs=-1, required=True)
@click.option("-R", "--raw", is_flag=True, help="Take values as they are: a backslash is a backslash.")
@pass_session
def command(session: Session, words: tuple[str, ...], raw: bool) -> None:
    """Set values.

    Nodes that are missing are made. In a value \\xNN stands for a byte; \\n, \\t, \\r and \\\\ for what they usually
    do. Several pairs of one domain are written in one step.
    """
    if len(words) % 2:
        raise click.UsageError(f"{words[-1]} has no value: it should be PATH VALUE.", click.get_current_context())
    pairs = zip(words[::2], words[1::2], strict=True)
    session.client.store_write({path: os.fsencode(value) if raw else unescape(value) for path, value in pairs})

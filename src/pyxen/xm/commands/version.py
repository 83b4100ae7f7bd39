from __future__ import annotations

import click

from pyxen import __version__
from pyxen.errors import Unavailable
from pyxen.xm.command import format_option, pass_session, subcommand
from pyxen.xm.output import echo_json
from pyxen.xm.session import Session


@subcommand("version", examples=["xm version"])
@format_option
@pass_session
def command(session: Session, form: str) -> None:
    """Print the versions of xm and xend."""
    try:
        xend = session.client.version().version
    except Unavailable:
        xend = None
    if form == "json":
        echo_json({"xm": __version__, "xend": xend})
        return
    click.echo(f"xm   {__version__}")
    click.echo(f"xend {xend or '(not running)'}")

from __future__ import annotations

from pyxen.xm import tables
from pyxen.xm.command import format_option, pass_session, subcommand
from pyxen.xm.output import echo_json, echo_lines
from pyxen.xm.session import Session


@subcommand("info", examples=["xm info", "xm info --format json"])
@format_option
@pass_session
def command(session: Session, form: str) -> None:
    """Show what this machine is and can do.

    Memory is in MiB. "accelerator" is what a domain gets that does not choose one, "kvm" says why.
    """
    host = session.client.host()
    if form == "json":
        echo_json(host)
    else:
        echo_lines(tables.info(host))

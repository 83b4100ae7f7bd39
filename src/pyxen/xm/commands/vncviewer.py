from __future__ import annotations

import os
import shutil

import click

from pyxen.errors import Conflict, Unsupported
from pyxen.xm.command import domain_argument, pass_session, subcommand
from pyxen.xm.session import Session

_FIRST_PORT = 5900


@subcommand("vncviewer", examples=["xm vncviewer web", "xm vncviewer --print web"])
@click.option("-a", "--autopass", is_flag=True, help="Has no effect: there are no passwords.")
@click.option("--print", "only_print", is_flag=True, help="Print the address, and start nothing.")
@domain_argument()
@pass_session
def command(session: Session, domain: str, autopass: bool, only_print: bool) -> None:
    """Show a domain's screen in a VNC viewer.

    The domain needs vnc=1 in its description. The viewer is vncviewer (of TigerVNC or another), gvncviewer or
    remote-viewer, whichever is installed.
    """
    found = session.client.domain(domain)
    if found.vnc is None:
        why = "is not running" if found.domid is None else "has no VNC server"
        raise Conflict(f"Domain '{found.name}' {why}", hint="vnc=1 in the description of an hvm domain gives it one.")
    address, _, display = found.vnc.partition(":")
    port = _FIRST_PORT + int(display)
    if only_print:
        click.echo(f"{address}:{port}")
        return
    for words in (
        ["vncviewer", f"{address}::{port}"],
        ["gvncviewer", found.vnc],
        ["remote-viewer", f"vnc://{address}:{port}"],
    ):
        if (program := shutil.which(words[0])) is not None:
            os.execv(program, words)
    raise Unsupported("no VNC viewer is installed", hint=f"Any that there is elsewhere can look at {address}:{port}.")

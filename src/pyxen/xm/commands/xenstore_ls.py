from __future__ import annotations

import shutil
import sys

import click

from pyxen.xm import store
from pyxen.xm.command import format_option, pass_session, subcommand
from pyxen.xm.output import echo_json, echo_lines
from pyxen.xm.session import Session


@subcommand("xenstore-ls", examples=["xm xenstore-ls", "xm xenstore-ls -f -p /local/domain/3", "xm xenstore-ls device"])
@click.argument("path", default="/")
@click.option("-f", "--full", is_flag=True, help="Whole paths, not indented; nothing is cut.")
@click.option("-p", "--permissions", is_flag=True, help="Show permissions too.")
@format_option
@pass_session
def command(session: Session, path: str, full: bool, permissions: bool, form: str) -> None:
    """Show a part of xenstore's tree.

    Everything below PATH, with values; bytes that can't be printed are \\xNN. On a terminal long values are cut at its
    right side. Permissions are a letter and a domain's id each, the owner first: n none, r read, w write, b both; the
    owner's letter is what domains without an entry may do.

    A PATH without a slash at its beginning is below /local/domain/0. Domains under QEMU have no store: a few nodes are
    shown in its place, and can't be changed.
    """
    nodes = session.client.store_tree(path)
    if form == "json":
        echo_json({"nodes": nodes})
        return
    width = shutil.get_terminal_size().columns - 2 if sys.stdout.isatty() else None
    echo_lines(store.lines(nodes, nodes[0].path, full=full, permissions=permissions, width=width))

from __future__ import annotations

from typing import BinaryIO

import click

from pyxen.xm.command import CONTEXT, format_option, pass_session, subcommand
from pyxen.xm.output import echo_json, echo_lines
from pyxen.xm.session import Session


@click.group("peer", context_settings=CONTEXT)
def command() -> None:
    """Say which other hosts domains may go to and come from.

    Two hosts trust each other when each has the other's certificate:

    \b
      host1$ xm peer show > host1.pem        host2$ xm peer show > host2.pem
      host1$ xm peer add host2 host2.pem     host2$ xm peer add host1 host1.pem
    """


@subcommand("show", examples=["xm peer show"])
@pass_session
def show(session: Session) -> None:
    """Print this host's own certificate."""
    click.echo(session.client.peers().certificate, nl=False)


@subcommand("list", examples=["xm peer list", "xm peer list --format json"])
@format_option
@pass_session
def list_peers(session: Session, form: str) -> None:
    """Show the hosts that are trusted, and the fingerprints of their certificates."""
    found = session.client.peers()
    if form == "json":
        echo_json(found)
        return
    rows = [("Name", "SHA-256"), *((peer.name, peer.fingerprint) for peer in found.peers)]
    width = max(len(name) for name, _ in rows)
    echo_lines(f"{name:<{width}}  {fingerprint}" for name, fingerprint in rows)


@subcommand("add", examples=["xm peer add host2 host2.pem", "ssh host2 xm peer show | xm peer add host2"])
@click.argument("name")
@click.argument("file", type=click.File("rb"), default="-")
@pass_session
def add(session: Session, name: str, file: BinaryIO) -> None:
    """Trust a host by its certificate: FILE, or the standard input."""
    peer = session.client.add_peer(name, file.read(65536).decode(errors="replace"))
    click.echo(f"Trusting {peer.name}, {peer.fingerprint}")


@subcommand("rm", examples=["xm peer rm host2"])
@click.argument("name")
@pass_session
def remove(session: Session, name: str) -> None:
    """Trust a host no more."""
    session.client.remove_peer(name)


for _each in (show, list_peers, add, remove):
    command.add_command(_each)

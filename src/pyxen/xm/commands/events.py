from __future__ import annotations

import time

import click

from pyxen.api import Event
from pyxen.xm.command import format_option, pass_session, subcommand
from pyxen.xm.session import Session
from pyxen.xm.wait import PATIENCE_S


@subcommand("events", examples=["xm events", "xm events --after 0 --format json"])
@click.option("--after", type=click.IntRange(min=0), metavar="N", help="Start after event number N, as far as kept.")
@format_option
@pass_session
def command(session: Session, after: int | None, form: str) -> None:
    """Show what happens, as it happens.

    One line for each event (with --format json, one JSON document a line), until Ctrl-C. Goes on where it was when
    xend is restarted.
    """
    for event in session.client.patient(PATIENCE_S).events(after):
        click.echo(_json(event) if form == "json" else line(event))


def line(event: Event) -> str:
    """An event for people: ``20:15:07 domain-stopped web (3) poweroff``."""
    parts = [time.strftime("%H:%M:%S", time.localtime(event.time)), event.kind]
    if event.name:
        parts.append(event.name if event.domid is None else f"{event.name} ({event.domid})")
    if event.reason:
        parts.append(event.reason)
    parts += [f"{key}={value}" for key, value in event.data.items()]
    return " ".join(parts)


def _json(event: Event) -> bytes:
    import msgspec

    return msgspec.json.encode(event)

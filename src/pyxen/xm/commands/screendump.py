from __future__ import annotations

from pathlib import Path

import click

from pyxen.errors import InvalidRequest
from pyxen.xm.command import domain_argument, pass_session, subcommand
from pyxen.xm.session import Session


@subcommand("screendump", examples=["xm screendump web", "xm screendump web - | display"])
@domain_argument()
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True), required=False)
@pass_session
def command(session: Session, domain: str, file: Path | None) -> None:
    """Write a picture of a domain's screen to a file.

    It is a PNG. Without FILE it goes into the current folder as DOMAIN.png; - is the standard output. A domain of type
    hvm has a screen, whether somebody watches it by VNC or not.
    """
    from pyxen.xm.terminal import write_all

    picture = session.client.screen(domain)
    if str(file) == "-":
        write_all(1, picture)
        return
    path = file or Path(f"{domain}.png")
    try:
        path.write_bytes(picture)
    except OSError as error:
        raise InvalidRequest(f"cannot write {path}: {error.strerror}") from None
    if file is None:
        click.echo(f"Written to {path}")

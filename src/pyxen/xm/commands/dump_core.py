from __future__ import annotations

from pathlib import Path

import click

from pyxen.xm.command import domain_argument, pass_session, subcommand
from pyxen.xm.session import Session


@subcommand("dump-core", examples=["xm dump-core web", "xm dump-core --crash web /var/tmp/web.core"])
@click.option("-L", "--live", is_flag=True, help="Don't pause the domain meanwhile.")
@click.option("-C", "--crash", is_flag=True, help="Destroy the domain afterwards.")
@click.option("-R", "--reset", is_flag=True, help="Reset the domain afterwards.")
@domain_argument()
@click.argument("file", type=click.Path(path_type=Path), required=False)
@pass_session
def command(session: Session, domain: str, file: Path | None, live: bool, crash: bool, reset: bool) -> None:
    """Write a domain's memory to a file.

    The file is an ELF core with the VCPUs' registers, for crash and gdb, and as sparse as the memory. Without FILE it
    goes into xend's own folder. The domain is paused meanwhile.
    """
    if crash and reset:
        raise click.UsageError("You may not specify more than one '-CR' option.", click.get_current_context())
    click.echo(f"Dumping core of domain: {domain} ...")
    path = None if file is None else str(file.absolute())
    done = session.client.dump_core(domain, path, live=live, crash=crash, reset=reset)
    if file is None:
        click.echo(f"Written to {done.path}")

from __future__ import annotations

import click

from pyxen.xm import description
from pyxen.xm.command import format_option, pass_session, subcommand
from pyxen.xm.output import echo_json, warn
from pyxen.xm.session import Session


@subcommand("new", examples=["xm new web.cfg", "xm new image=debian name=db memory=1024", "xm new -n web.cfg"])
@click.argument("words", nargs=-1, metavar="[FILE] [KEY=VALUE]...")
@click.option("-n", "--dry-run", "--dryrun", "dry_run", is_flag=True, help="Print the description, define nothing.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing when all goes well.")
@click.option("--path", "search", default=description.SEARCH_PATH, show_default=True, help="Where files are searched.")
@format_option
@pass_session
def command(session: Session, words: tuple[str, ...], dry_run: bool, quiet: bool, search: str, form: str) -> None:
    """Define a managed domain, without starting it.

    FILE and KEY=VALUE are as for xm create. xend keeps a managed domain also while it does not run; xm start starts
    it, xm delete forgets it.
    """
    as_json = form == "json"
    loaded = description.load(words, search=search, announce=not quiet and not as_json, err=dry_run)
    if dry_run:
        description.show(loaded.config, as_json)
        return
    domain = session.client.create(loaded.config, managed=True)
    warn(warning for warning in domain.warnings if warning not in loaded.warnings)
    if as_json:
        echo_json(domain)

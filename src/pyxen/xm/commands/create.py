from __future__ import annotations

import click

from pyxen.api import Domain
from pyxen.xm import description
from pyxen.xm.command import format_option, pass_session, subcommand
from pyxen.xm.output import echo_json, warn
from pyxen.xm.session import Session
from pyxen.xm.starting import with_console


@subcommand(
    "create",
    examples=[
        "xm create web.cfg",
        "xm create web.cfg memory=1024 -c",
        "xm create image=tiny name=web vif=forward=2222:22",
        "xm create -n web.cfg",
    ],
)
@click.argument("words", nargs=-1, metavar="[FILE] [KEY=VALUE]...")
@click.option("-c", "--console", "--console_autoconnect", "console", is_flag=True, help="Connect to its console.")
@click.option("-p", "--paused", is_flag=True, help="Leave it paused; xm unpause lets it run.")
@click.option("-n", "--dry-run", "--dryrun", "dry_run", is_flag=True, help="Print the description, start nothing.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing when all goes well.")
@click.option("--path", "search", default=description.SEARCH_PATH, show_default=True, help="Where files are searched.")
@format_option
@pass_session
def command(
    session: Session,
    words: tuple[str, ...],
    console: bool,
    paused: bool,
    dry_run: bool,
    quiet: bool,
    search: str,
    form: str,
) -> None:
    """Start a domain from a file or from key=value words.

    FILE is in xm's and xl's format. A word such as memory=512 overrides the file. Without a FILE, image=…
    or kernel=… says what boots. The domain is forgotten when it ends; xm new defines one that is kept.
    """
    as_json = form == "json"
    loaded = description.load(words, search=search, announce=not quiet and not as_json, err=dry_run)
    if dry_run:
        description.show(loaded.config, as_json)
        return

    def start(start_paused: bool) -> Domain:
        return session.client.create(loaded.config, paused=start_paused)

    def started(domain: Domain) -> None:
        warn(warning for warning in domain.warnings if warning not in loaded.warnings)
        if as_json:
            echo_json(domain)
        elif not quiet:
            click.echo(f"Started domain {domain.name} (id={domain.domid})")

    if console:
        with_console(session.client, start, paused=paused, started=started)
    else:
        started(start(paused))

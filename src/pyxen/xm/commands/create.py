from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

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
        "xm create --from web:base name=web2",
    ],
)
@click.argument("words", nargs=-1, metavar="[FILE] [KEY=VALUE]...")
@click.option("--from", "template", metavar="DOMAIN[:SNAPSHOT]", help="Go on from a snapshot, in place of booting.")
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
    template: str | None,
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

    With --from it doesn't boot: it goes on from a snapshot of another domain, which may be gone, or (without SNAPSHOT)
    from what a running one is now, as xm clone makes it. It has that domain's description, and only name=… can be said.
    """
    as_json = form == "json"
    if template is not None:
        _start_from(session, template, words, console=console, paused=paused, dry_run=dry_run, quiet=quiet, form=form)
        return
    loaded = description.load(words, search=search, announce=not quiet and not as_json, err=dry_run)
    if dry_run:
        description.show(loaded.config, as_json)
        return

    def start(start_paused: bool) -> Domain:
        return session.client.create(loaded.config, paused=start_paused)

    _start(session, start, console=console, paused=paused, quiet=quiet, form=form, said=loaded.warnings)


def _start_from(
    session: Session,
    template: str,
    words: tuple[str, ...],
    *,
    console: bool,
    paused: bool,
    dry_run: bool,
    quiet: bool,
    form: str,
) -> None:
    if dry_run or any(not word.startswith("name=") for word in words) or len(words) > 1:
        raise click.UsageError(
            "with --from a domain goes on as the one it is from: only name=… can be said.", click.get_current_context()
        )
    source, _, snapshot = template.partition(":")
    name = words[0].removeprefix("name=") if words else _free_name(session, source)

    def start(start_paused: bool) -> Domain:
        return session.client.clone(source, name, snapshot or None, paused=start_paused)

    _start(session, start, console=console, paused=paused, quiet=quiet, form=form, said=[])


def _free_name(session: Session, source: str) -> str:
    taken = {domain.name for domain in session.client.domains()}
    return next(name for number in itertools.count(1) if (name := f"{source}-{number}") not in taken)


def _start(
    session: Session,
    start: Callable[[bool], Domain],
    *,
    console: bool,
    paused: bool,
    quiet: bool,
    form: str,
    said: Sequence[str],
) -> None:
    """Start it (``start`` takes *paused*), and say so. ``said``: warnings that the user has seen."""

    def started(domain: Domain) -> None:
        warn(warning for warning in domain.warnings if warning not in said)
        if form == "json":
            echo_json(domain)
        elif not quiet:
            click.echo(f"Started domain {domain.name} (id={domain.domid})")

    if console:
        with_console(session.client, start, paused=paused, started=started)
    else:
        started(start(paused))

from __future__ import annotations

import click

from pyxen.xm.command import domain_argument, format_option, pass_session, subcommand
from pyxen.xm.output import echo_json
from pyxen.xm.session import Session


@subcommand(
    "migrate",
    examples=[
        "xm migrate --live web host2",
        "xm migrate --check web host2",
        "xm migrate --live --copy-disks web host2",
        "xm migrate --live --bandwidth 100 --downtime 50 web host2",
        "xm migrate --cancel web",
    ],
)
@click.option("-l", "--live", is_flag=True, help="Let the guest run while its memory is sent.")
@click.option("-p", "--port", type=click.IntRange(1, 65535), help="The port that xend listens on there (8002).")
@click.option("--check", is_flag=True, help="Only see if the domain would fit there.")
@click.option("--copy-disks", is_flag=True, help="Copy the disks that the hosts don't share.")
@click.option("--bandwidth", type=click.IntRange(min=1), metavar="MIB", help="Send at most so many MiB a second.")
@click.option(
    "--downtime",
    type=click.IntRange(1, 2_000_000),
    metavar="MS",
    default=300,
    help="Stop the guest when the rest can be sent in so many milliseconds (300).",
)
@click.option("--no-converge", is_flag=True, help="Don't slow a guest down that changes memory faster than it is sent.")
@click.option("--cancel", is_flag=True, help="Call a migration off that is under way: the domain goes on here.")
@click.option(
    "--here", is_flag=True, help="Let a domain go on here whose new host was lost, and certainly doesn't run it."
)
@click.option("-q", "--quiet", is_flag=True, help="Print nothing when all goes well.")
@click.option("-s", "--ssl", "encrypted", is_flag=True, hidden=True, help="It always is.")
@format_option
@domain_argument()
@click.argument("host", required=False)
@pass_session
def command(
    session: Session,
    domain: str,
    host: str | None,
    live: bool,
    port: int | None,
    check: bool,
    copy_disks: bool,
    bandwidth: int | None,
    downtime: int,
    no_converge: bool,
    cancel: bool,
    here: bool,
    quiet: bool,
    encrypted: bool,
    form: str,
) -> None:
    """Move a running domain to another host.

    Both hosts must trust each other (xm peer), xend there must take domains in (relocation in xend.toml), and the
    domain's disks must lie in a folder that both share, at the same path. What doesn't fit is said before anything is
    sent. Whatever breaks on the way, the domain runs on exactly one of the two; Ctrl-C calls the migration off.

    With --copy-disks, disks that it writes to and that are not shared are copied first, while the guest runs, to files
    of the same names there. A file that is there already is never written over. The files here stay as they were when
    the guest left: remove them when they are not wanted any more.

    Without --live the guest is paused before its memory is sent.
    """
    if cancel or here:
        (session.client.cancel_migration if cancel else session.client.keep)(domain)
        return
    if host is None:
        raise click.UsageError("Which host should it go to?", click.get_current_context())
    from pyxen.xm.progress import show

    steps = session.client.migrate(
        domain,
        host,
        port=port,
        live=live,
        dry=check,
        copy_disks=copy_disks,
        bandwidth_mib=bandwidth,
        downtime_ms=downtime,
        converge=not no_converge,
    )
    last = show(steps, quiet=quiet or form == "json")
    if last is None or quiet:
        return
    if (done := last.migrated) is None:
        click.echo(f"'{domain}' would fit on {host}")
    elif form == "json":
        echo_json(done)
    else:
        click.echo(
            f"Migrated domain {done.name} to {done.host} (id={done.domid}): {done.total_s:.2f} s in all, "
            f"down for {done.downtime_s * 1000:.0f} ms, {done.sent_bytes / 2**20:.1f} MiB in {done.rounds} rounds"
        )

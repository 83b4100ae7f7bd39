from __future__ import annotations

import click

from pyxen.xm import tables
from pyxen.xm.command import CONTEXT, domain_argument, format_option, pass_session, subcommand
from pyxen.xm.output import echo_json, echo_lines, warn
from pyxen.xm.session import Session


@click.group("snapshot", context_settings=CONTEXT)
def command() -> None:
    """Take, list and remove snapshots of domains, and go back to one.

    A snapshot is what a domain's memory and writable disks were at one moment. It stays when the domain ends, until it
    is removed, or its managed domain deleted.
    """


@subcommand(
    "create", examples=["xm snapshot create web before-upgrade", "xm snapshot create --quiesce web before-upgrade"]
)
@click.option(
    "--quiesce", is_flag=True, help="Have QEMU's guest agent write out and freeze the file systems meanwhile."
)
@domain_argument()
@click.argument("name")
@pass_session
def create(session: Session, domain: str, name: str, quiesce: bool) -> None:
    """Take a snapshot of a running domain.

    The guest stands still while its memory is written and its disks are copied: by reference where the file system can
    (btrfs, XFS), else all that is on them. Memory and disks are of one moment, so nothing is lost; with --quiesce the
    disks' file systems are whole by themselves, too, for whoever reads their copies without the memory.
    """
    session.client.create_snapshot(domain, name, quiesce=quiesce)


@subcommand("list", examples=["xm snapshot list", "xm snapshot list web --format json"])
@domain_argument(required=False)
@format_option
@pass_session
def list_snapshots(session: Session, domain: str | None, form: str) -> None:
    """Show a domain's snapshots, or all."""
    found = session.client.snapshots(domain)
    if form == "json":
        echo_json({"snapshots": found})
    else:
        echo_lines(tables.snapshots(found))


@subcommand("revert", examples=["xm snapshot revert web before-upgrade", "xm snapshot revert -p web before-upgrade"])
@click.option("-p", "--paused", is_flag=True, help="Leave the domain paused.")
@domain_argument()
@click.argument("name")
@pass_session
def revert(session: Session, domain: str, name: str, paused: bool) -> None:
    """Take a domain back to a snapshot, whether it runs or not.

    What has become of its memory and disks since is lost. It has its name and UUID, and a new id.
    """
    warn(session.client.revert(domain, name, paused=paused).warnings)


@subcommand("rm", examples=["xm snapshot rm web before-upgrade"])
@domain_argument()
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@pass_session
def remove(session: Session, domain: str, names: tuple[str, ...]) -> None:
    """Remove snapshots. Clones of them have disks of their own, and go on."""
    for name in names:
        session.client.remove_snapshot(domain, name)


for _each in (create, list_snapshots, revert, remove):
    command.add_command(_each)

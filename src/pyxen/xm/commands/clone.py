from __future__ import annotations

import click

from pyxen.xm.command import domain_argument, pass_session, subcommand
from pyxen.xm.output import warn
from pyxen.xm.session import Session


@subcommand("clone", examples=["xm clone web web2", "xm clone -s base web web2", "xm clone -s base -m web web2"])
@click.option("-s", "--snapshot", metavar="NAME", help="From this snapshot of it, in place of what it is now.")
@click.option("-m", "--managed", is_flag=True, help="Keep the new domain when it stops.")
@click.option("-p", "--paused", is_flag=True, help="Leave the new domain paused.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing when all goes well.")
@domain_argument()
@click.argument("name")
@pass_session
def command(
    session: Session, domain: str, name: str, snapshot: str | None, managed: bool, paused: bool, quiet: bool
) -> None:
    """Start a copy of a domain, as it is or as it was.

    DOMAIN runs on. The new domain goes on from the same memory, under another name and UUID, with copies of the
    writable disks (in xend's folder of disks) and MACs of its own. xend tells the agent in its guest the time, new
    random numbers, a machine ID and, if it has booted from an image, its host name. Vifs on bridges are not connected
    before the agent has given them their MACs; without an agent they stay so. On user-mode networks the guest keeps
    its source's MACs until it reboots. Ports that are forwarded stay DOMAIN's. Clones of one snapshot (-s) share its
    memory, and start faster from the second one on: until there has been none for ten minutes, the next one waits
    (clones_waiting in xend.toml; xm info shows how many do).
    """
    made = session.client.clone(domain, name, snapshot, paused=paused, managed=managed)
    if not quiet:
        warn(made.warnings)
        click.echo(f"Started domain {made.name} (id={made.domid})")

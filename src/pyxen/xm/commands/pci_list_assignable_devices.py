from __future__ import annotations

import click

from pyxen.xm import tables
from pyxen.xm.command import format_option, pass_session, subcommand
from pyxen.xm.output import echo_json, echo_lines, warn
from pyxen.xm.session import Session


@subcommand(
    "pci-list-assignable-devices",
    examples=["xm pci-list-assignable-devices", "xm pci-list-assignable-devices --all"],
)
@click.option("-a", "--all", "everything", is_flag=True, help="Each PCI device, and what becomes of it.")
@format_option
@pass_session
def command(session: Session, everything: bool, form: str) -> None:
    """Show the host's PCI devices that domains may have.

    Those that are bound to vfio-pci, by xm pci-assignable-add or otherwise, and that no domain has yet. If none can be
    given away at all, the reason is on the standard error. With --all, State is assignable, assigned (to Domain), free
    (it can be made assignable) or kept (it can't; --format json says why). The devices of a Group go to one domain
    together.
    """
    found = session.client.host_pci()
    if form == "json":
        echo_json(found)
        return
    if everything:
        echo_lines(tables.host_pci(found))
    else:
        echo_lines(each.address for each in found.devices if each.assignable and each.domain is None)
    if found.problem:
        warn([found.problem])
        if found.hint:
            click.echo(found.hint, err=True)

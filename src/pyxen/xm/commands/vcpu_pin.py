from __future__ import annotations

import click

from pyxen.xm.command import domain_argument, pass_session, subcommand
from pyxen.xm.output import warn
from pyxen.xm.session import Session


@subcommand(
    "vcpu-pin",
    examples=[
        "xm vcpu-pin web 0 2",
        "xm vcpu-pin web all 0-3,^1",
        "xm vcpu-pin web all nodes:0",
        "xm vcpu-pin web 1 all",
    ],
)
@domain_argument()
@click.argument("vcpu", metavar="VCPU|all")
@click.argument("cpus", metavar="CPUS|-|all")
@click.argument("soft", metavar="[SOFT|-|all]", required=False)
@pass_session
def command(session: Session, domain: str, vcpu: str, cpus: str, soft: str | None) -> None:
    """Say which of the host's CPUs a VCPU may run on.

    CPUS is a list such as 0-3,^1 or nodes:0; "-" leaves it as it is. SOFT is where it should run rather than elsewhere:
    Linux knows no such preference, so it is only kept, and shown by xm vcpu-list. Both stay with the domain's
    description, for its next starts too.
    """
    if vcpu != "all" and not (vcpu.isascii() and vcpu.isdigit() and int(vcpu) < 512):
        raise click.BadParameter("it is a VCPU's number, or all", param_hint="VCPU")
    changed = session.client.pin_vcpus(
        domain, None if vcpu == "all" else int(vcpu), cpus=_given(cpus), soft=_given(soft)
    )
    warn(changed.warnings)


def _given(text: str | None) -> str | None:
    return None if text in (None, "-") else text.lower()

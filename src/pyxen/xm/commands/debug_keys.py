from __future__ import annotations

import click

from pyxen.xm.command import pass_session, subcommand
from pyxen.xm.session import Session


@subcommand("debug-keys", examples=["xm debug-keys q", "xm debug-keys he"])
@click.argument("keys")
@pass_session
def command(session: Session, keys: str) -> None:
    """Have the hypervisor say what it knows of its domains.

    xm dmesg shows it. KEYS are Xen's: e event channels, g grants in use, q domains and VCPUs (and guests are sent
    VIRQ_DEBUG, for what they make of it), h help. Domains on QEMU know none of them.
    """
    session.client.debug_keys(keys)

from __future__ import annotations

from pathlib import Path

import click

from pyxen.xm.command import pass_session, subcommand
from pyxen.xm.session import Session


@subcommand(
    "cpupool-create",
    examples=["xm cpupool-create name=fast cpus=2-3", "xm cpupool-create name=fast", "xm cpupool-create fast.cfg"],
)
@click.argument("words", nargs=-1, required=True, metavar="[FILE] [KEY=VALUE]...")
@pass_session
def command(session: Session, words: tuple[str, ...]) -> None:
    """Make a pool of free CPUs.

    Keys are name, and cpus or nodes: a list such as 2-3. Without either the pool gets one CPU that is free. xm
    cpupool-cpu-remove Pool-0 frees CPUs.
    """
    from pyxen.config.poolfile import load_pool

    file = None if "=" in words[0] else Path(words[0])
    described = load_pool(file, words if file is None else words[1:])
    made = session.client.create_cpupool(described.name, described.cpus)
    click.echo(f"cpupool {made.name} created")

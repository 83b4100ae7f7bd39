from __future__ import annotations

import click

from pyxen.xm.cli import cli, resolve
from pyxen.xm.command import subcommand


@subcommand("help", examples=["xm help", "xm help create"])
@click.argument("name", required=False, metavar="[COMMAND]")
@click.pass_context
def command(ctx: click.Context, name: str | None) -> None:
    """Show the list of commands, or a command's help."""
    top = ctx.find_root()
    if name is None:
        click.echo(cli.get_help(top))
        return
    name = resolve(name)
    found = cli.get_command(top, name)
    assert found is not None
    with click.Context(found, info_name=name, parent=top, **found.context_settings) as inner:
        click.echo(found.get_help(inner))

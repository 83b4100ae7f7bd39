from __future__ import annotations

import click

from pyxen.xm.cli import cli
from pyxen.xm.command import subcommand


@subcommand(
    "completion",
    examples=[
        'eval "$(xm completion bash)"',
        "xm completion zsh > ~/.zfunc/_xm",
        "xm completion fish > ~/.config/fish/completions/xm.fish",
    ],
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print a shell's completion script.

    It completes commands, options and the names of domains.
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    maker = kind(cli, {}, "xm", "_XM_COMPLETE")
    click.echo(maker.source_template % maker.source_vars())

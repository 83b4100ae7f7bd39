from __future__ import annotations

import click

from pyxen.agent_api import AGENT_WAIT_S
from pyxen.xm.command import domain_argument, pass_session, subcommand
from pyxen.xm.session import Session

_EXAMPLES = [
    "xm exec web -- uname -a",
    "xm exec -e LANG=C -w /etc web sh -c 'cat passwd | wc -l'",
    "tar c site | xm exec -i web -- tar x -C /srv",
    "xm exec -it web -- sh",
]


@subcommand("exec", examples=_EXAMPLES)
@click.option("-i", "--interactive", is_flag=True, help="Pass standard input on to the command.")
@click.option("-t", "--tty", is_flag=True, help="Give the command a terminal of this one's size.")
@click.option("-e", "--env", "words", multiple=True, metavar="NAME=VALUE", help="Set a variable. May be repeated.")
@click.option("-w", "--workdir", default="/", show_default=True, metavar="DIR", help="Where it starts.")
@click.option(
    "--wait",
    "wait_s",
    default=AGENT_WAIT_S,
    show_default=True,
    type=click.FloatRange(0, 600),
    metavar="SECONDS",
    help="How long to wait for the guest's agent.",
)
@domain_argument()
@click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED, metavar="[--] COMMAND [ARGS]...")
@pass_session
def command(
    session: Session,
    domain: str,
    argv: tuple[str, ...],
    interactive: bool,
    tty: bool,
    words: tuple[str, ...],
    workdir: str,
    wait_s: float,
) -> int:
    """Run a command in a domain, as its root.

    Its output is this command's output, its exit status this one's: 128 and the number of a signal that has ended it,
    127 if there is no such command, 126 if it can't be run. The guest's agent runs it, which images of xm image build
    have; docs/reference/agent.md says how to put it into others. Ctrl-C interrupts the command.
    """
    from pyxen.xm.executing import run, variable

    if argv[0] == "--":
        argv = argv[1:]
    if not argv:
        raise click.UsageError("there is no command to run.", click.get_current_context())

    env = dict(map(variable, words))
    return run(session.client, domain, argv, env, workdir, interactive=interactive, tty=tty, wait_s=wait_s)


# What follows the domain belongs to the command.
command.allow_interspersed_args = False

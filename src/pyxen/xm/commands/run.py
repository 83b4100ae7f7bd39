from __future__ import annotations

import click

from pyxen.run_api import BOOT_WAIT_S
from pyxen.xm.command import pass_session, size_option, subcommand
from pyxen.xm.session import Session

_EXAMPLES = [
    "xm run -- uname -r",
    "xm run --kernel ~/linux --rw . -- make -C tools/testing/selftests/timers run_tests",
    "xm run --kernel linux-image-rt-amd64 --script 'dmesg | grep -i preempt'",
    "xm run --kernel ~/linux --gdb -- true",
]


@subcommand("run", examples=_EXAMPLES)
@click.option(
    "--kernel",
    metavar="KERNEL",
    help="A bzImage or vmlinux, a kernel's build tree, a Debian package (linux-image-…) or its file, the release of "
    "one in /boot, or 'host' for the one that this host runs. Default: Debian's, kept in the image store.",
)
@click.option("--script", metavar="TEXT", help="Run this by sh -c, in place of a command.")
@click.option("--rw", multiple=True, metavar="DIR", help="A folder that the guest may change. May be repeated.")
@click.option("--gdb", is_flag=True, help="Stand still at the kernel's first instruction until gdb lets it go on.")
@size_option("--memory", default="512", show_default=True, help="The guest's memory, in MiB or with a unit.")
@click.option("--vcpus", default=1, show_default=True, type=click.IntRange(1, 512), metavar="COUNT", help="Its VCPUs.")
@click.option(
    "--engine",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "qemu", "xen"]),
    help="What runs it; only QEMU can.",
)
@click.option("-e", "--env", "words", multiple=True, metavar="NAME=VALUE", help="Set a variable. May be repeated.")
@click.option("-v", "--verbose", is_flag=True, help="Show what the kernel says, on the standard error.")
@click.option(
    "--wait",
    "wait_s",
    default=BOOT_WAIT_S,
    show_default=True,
    type=click.FloatRange(0, 600),
    metavar="SECONDS",
    help="How long the kernel may take to boot.",
)
@click.argument("argv", nargs=-1, type=click.UNPROCESSED, metavar="[--] [COMMAND [ARGS]...]")
@pass_session
def command(
    session: Session,
    argv: tuple[str, ...],
    kernel: str | None,
    script: str | None,
    rw: tuple[str, ...],
    gdb: bool,
    memory: int,
    vcpus: int,
    engine: str,
    words: tuple[str, ...],
    verbose: bool,
    wait_s: float,
) -> int:
    """Boot a kernel on this host's files and run a command in it.

    The command runs as root, and the guest ends with it. It reads the host's files as everybody may read them, and
    what it changes is forgotten, except in the folders of --rw. It starts in the current folder, with this terminal,
    PATH and language; its exit status is this command's. Without one, a shell. Ctrl-C interrupts the command; a second
    one, or Ctrl-] on a terminal, ends the guest, which is a domain like any other, called run-XXXX.
    """
    from pyxen.xm.sandbox import Wishes, run

    if script is not None and argv:
        raise click.UsageError("there is a command and a --script.", click.get_current_context())
    wishes = Wishes(
        argv=["sh", "-c", script] if script is not None else list(argv),
        kernel=kernel,
        rw=list(rw),
        gdb=gdb,
        memory=memory,
        vcpus=vcpus,
        engine=engine,
        env=list(words),
        verbose=verbose,
        wait_s=wait_s,
    )
    return run(session.client, wishes)


# What follows the first word belongs to the command.
command.allow_interspersed_args = False

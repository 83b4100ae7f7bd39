"""The command ``xm`` itself: finds the sub-command that was meant, and imports only that."""

from __future__ import annotations

from importlib import import_module

import click

from pyxen.xm.command import CONTEXT
from pyxen.xm.session import Session

SECTIONS: dict[str, dict[str, str]] = {
    "Domains": {
        "create": "Start a domain from a file or from key=value words.",
        "list": "Show the domains.",
        "console": "Connect to a domain's console.",
        "shutdown": "Ask domains to shut down.",
        "reboot": "Ask domains to reboot.",
        "destroy": "End a domain at once.",
        "pause": "Stop a domain's VCPUs.",
        "unpause": "Let a paused domain run on.",
        "suspend": "Have a domain's guest put itself in order and stand still.",
        "resume": "Let a suspended domain go on.",
        "rename": "Give a domain another name.",
        "run": "Boot a kernel on this host's files and run a command in it.",
        "exec": "Run a command in a domain, as its root.",
        "cp": "Copy a file into a domain or out of it.",
    },
    "Orders for a running domain": {
        "vcpu-pin": "Say which of the host's CPUs a VCPU may run on.",
        "sched-credit": "Show or set domains' weights and caps.",
        "io-weight": "Set a domain's part of the host's busy disks.",
        "vcpu-set": "Set how many VCPUs a domain uses.",
        "mem-set": "Set how much memory a domain has.",
        "mem-max": "Set how much memory a domain may be given.",
        "sysrq": "Press SysRq and a key in a domain.",
        "trigger": "Send a domain an event of hardware.",
        "dump-core": "Write a domain's memory to a file.",
        "screendump": "Write a picture of a domain's screen to a file.",
        "vncviewer": "Show a domain's screen in a VNC viewer.",
    },
    "CPU pools": {
        "cpupool-list": "Show the CPU pools.",
        "cpupool-create": "Make a pool of free CPUs.",
        "cpupool-destroy": "End a pool without domains.",
        "cpupool-cpu-add": "Put free CPUs into a pool.",
        "cpupool-cpu-remove": "Take CPUs out of a pool.",
        "cpupool-migrate": "Move a domain to another pool.",
        "cpupool-numa-split": "Make a pool of each NUMA node.",
    },
    "Disks and network interfaces": {
        "block-attach": "Give a domain a disk.",
        "block-detach": "Take a disk away from a domain.",
        "block-limit": "Limit how much a disk reads and writes.",
        "block-list": "Show a domain's disks.",
        "block-resize": "Make a running domain's disk longer.",
        "cd-insert": "Put a disc into a domain's CD-ROM drive.",
        "cd-eject": "Take the disc out of a domain's CD-ROM drive.",
        "network-attach": "Give a domain a network interface.",
        "network-detach": "Take a network interface away from a domain.",
        "network-limit": "Limit how much a domain sends over a network interface.",
        "network-list": "Show a domain's network interfaces.",
    },
    "Devices of the host": {
        "pci-list-assignable-devices": "Show the host's PCI devices that domains may have.",
        "pci-assignable-add": "Take a PCI device from its driver, for domains.",
        "pci-assignable-remove": "Give a PCI device back to its driver.",
        "pci-attach": "Give a domain a PCI device of the host.",
        "pci-detach": "Take a PCI device of the host away from a domain.",
        "pci-list": "Show a domain's PCI devices of the host.",
        "usb-list-assignable-devices": "Show the host's USB devices that domains may have.",
        "usb-attach": "Give a domain a USB device.",
        "usb-detach": "Unplug a USB device of a domain.",
        "usb-list": "Show a domain's USB devices.",
    },
    "Saved domains": {
        "save": "Save a domain's state to a file.",
        "restore": "Start a domain from its saved state.",
        "snapshot": "Take, list and remove snapshots of domains, and go back to one.",
        "clone": "Start a copy of a domain, as it is or as it was.",
    },
    "Other hosts": {
        "migrate": "Move a running domain to another host.",
        "peer": "Say which other hosts domains may go to and come from.",
    },
    "Managed domains (kept while they don't run)": {
        "new": "Define a managed domain, without starting it.",
        "start": "Start a managed domain.",
        "delete": "Forget a managed domain.",
    },
    "Looking": {
        "domid": "Print a domain's id.",
        "domname": "Print a domain's name.",
        "domstate": "Print a domain's state in a word.",
        "vcpu-list": "Show the domains' virtual CPUs.",
        "uptime": "Show for how long domains have been running.",
        "top": "Watch what the domains use.",
        "info": "Show what this machine is and can do.",
        "events": "Show what happens, as it happens.",
        "debug-trace": "Show what a domain asks of its hypervisor, as it happens.",
        "log": "Print xend's log.",
        "dmesg": "Print the hypervisor's messages.",
        "debug-keys": "Have the hypervisor say what it knows of its domains.",
    },
    "xenstore (also by these names without xm)": {
        "xenstore-ls": "Show a part of xenstore's tree.",
        "xenstore-read": "Print values.",
        "xenstore-list": "Print the names of a node's children.",
        "xenstore-exists": "Say by the exit status whether nodes are there.",
        "xenstore-write": "Set values.",
        "xenstore-rm": "Remove nodes, each with all below it.",
        "xenstore-chmod": "Say who may read and write a node.",
        "xenstore-watch": "Show what changes, as it changes.",
    },
    "Descriptions and images": {
        "config": "Check, show and explain domain configuration files.",
        "image": "List, build and remove images to boot.",
    },
    "xm": {
        "help": "Show the list of commands, or a command's help.",
        "version": "Print the versions of xm and xend.",
        "completion": "Print a shell's completion script.",
    },
}
SUMMARIES = {name: summary for section in SECTIONS.values() for name, summary in section.items()}

# What xm and xl have and pyxen does not (yet): a friendlier answer than "not found".
CLASSIC = frozenset(
    """
    block-configure reset sched-credit2 sched-sedf serve shell usb-hc-create usb-hc-destroy
    """.split()  # noqa: SIM905 - a column of forty quoted words reads worse
)

ALIASES = {
    "pci-assignable-list": "pci-list-assignable-devices",
    "usb-add": "usb-attach",
    "usb-del": "usb-detach",
    "usbdev-attach": "usb-attach",
    "usbdev-detach": "usb-detach",
}
"""What xl, or an older xm, calls a command."""


class UnknownCommand(click.UsageError):
    """No sub-command has this name; ``hint`` names the nearest."""

    def __init__(self, name: str, hint: str) -> None:
        super().__init__(f"Subcommand {name} not found!")
        self.hint = hint


class LazyGroup(click.Group):
    """A group whose commands are modules of :mod:`pyxen.xm.commands`, imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(SUMMARIES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in SUMMARIES:
            return None
        module = import_module(f"pyxen.xm.commands.{cmd_name.replace('-', '_')}")
        found: click.Command = module.command
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = resolve(args[0])
        return name, self.get_command(ctx, name), args[1:]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl(list(commands.items()), col_max=18)


def resolve(word: str) -> str:
    """The sub-command that ``word`` is, or is the beginning of; raises UnknownCommand."""
    if word in SUMMARIES:
        return word
    if word in ALIASES:
        return ALIASES[word]
    if word in CLASSIC:
        raise UnknownCommand(word, "This version of pyxen does not have it yet. What there is: xm help")
    meant = [name for name in SUMMARIES if name.startswith(word)] if len(word) >= 2 else []
    if len(meant) == 1:
        return meant[0]
    if meant:
        raise UnknownCommand(word, f"It may be {' or '.join(meant)}")
    from difflib import get_close_matches

    near = get_close_matches(word, SUMMARIES, n=1)
    raise UnknownCommand(word, f"Did you mean: xm {near[0]}?" if near else "What there is: xm help")


def _print_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        from pyxen import __version__

        click.echo(f"xm {__version__}")
        ctx.exit()


@click.group(cls=LazyGroup, context_settings=CONTEXT, subcommand_metavar="COMMAND [ARGS]...")
@click.option("--debug", is_flag=True, help="Show tracebacks of errors.")
@click.option(
    "-V", "--version", is_flag=True, expose_value=False, is_eager=True, callback=_print_version, help="Print xm's."
)
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """Manage this machine's domains, through xend.

    A command's name may be shortened as long as it is clear. DOMAIN is a name, an id or a UUID. Every command
    explains itself: xm COMMAND --help.
    """
    session = ctx.ensure_object(Session)
    session.debug = debug

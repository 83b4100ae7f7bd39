"""``shutdown`` and ``reboot``: the same order to one domain or to all, and the wait for it."""

from __future__ import annotations

import time

import click

from pyxen.api import Domain, PowerState
from pyxen.client import Client
from pyxen.errors import PyxenError
from pyxen.xm.wait import until_rebooted, until_stopped

_STOPPED = (PowerState.SHUTDOWN, PowerState.CRASHED)


def targets(client: Client, refs: tuple[str, ...], everything: bool) -> list[str]:
    """The domains to order about: those named, or all but Domain-0."""
    if everything and refs:
        raise click.UsageError("say either domains or -a, not both.", click.get_current_context())
    if everything:
        return [each.uuid for each in client.domains() if each.domid and each.power_state not in _STOPPED]
    if not refs:
        raise click.UsageError("missing argument DOMAIN (or -a for all).", click.get_current_context())
    return list(refs)


def order(client: Client, refs: list[str], reason: str) -> list[Domain]:
    """Ask each guest; one that can't be asked keeps none of the others from it. Raises the first error at the end."""
    asked: list[Domain] = []
    refused: list[PyxenError] = []
    for ref in refs:
        try:
            asked.append(client.shutdown(ref, reason))
        except PyxenError as error:
            if len(refs) > 1:
                click.echo(f"Error: {error}", err=True)
            refused.append(error)
    if refused:
        if len(refs) == 1:
            raise refused[0]
        raise PyxenError(f"{len(refused)} of {len(refs)} domains could not be asked")
    return asked


def wait_terminated(client: Client, asked: list[Domain], timeout_s: float | None) -> None:
    """Say of each domain, as it ends, that it has; then that all have."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    for domain in asked:
        until_stopped(client, domain, deadline)
        click.echo(f"Domain {domain.name} terminated")
    click.echo("All domains terminated")


def wait_rebooted(client: Client, asked: list[Domain], timeout_s: float | None) -> int:
    """As ``wait_terminated``, for reboots; returns the exit status."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    status = 0
    for domain in asked:
        if until_rebooted(client, domain, deadline):
            click.echo(f"Domain {domain.name} rebooted")
        else:
            click.echo(f"Domain {domain.name} destroyed for failing to reboot")
            status = 1
    if not status:
        click.echo("All domains rebooted")
    return status

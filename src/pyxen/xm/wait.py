"""Waiting for domains to end or to come back, also across a restart of xend."""

from __future__ import annotations

import time
from collections.abc import Iterator

import click

from pyxen.api import Domain, PowerState
from pyxen.client import Client
from pyxen.config.model import Action
from pyxen.errors import NotFound, PyxenError

PATIENCE_S = 15.0
"""For so long xend may be away while somebody waits."""
_GRACE_S = 30.0
"""A domain that has not come back so long after it went has failed to reboot."""
_NOTE_S = 15.0
"""After so long without an effect, say what may be the matter: a guest that is booting does not hear the request."""
_OVER = (PowerState.HALTED, PowerState.SHUTDOWN, PowerState.CRASHED)


def _look(client: Client, uuid: str) -> Domain | None:
    try:
        return client.domain(uuid)
    except NotFound:
        return None


def _pauses() -> Iterator[float]:
    pause = 0.05
    while True:
        yield pause
        pause = min(pause * 1.5, 0.5)


def until_stopped(client: Client, domain: Domain, deadline: float | None) -> None:
    """Return when this life of ``domain`` is over and xend has let go of it, unless its description preserves it.

    Raises PyxenError at ``deadline`` (monotonic seconds).
    """
    patient = client.patient(PATIENCE_S)
    doubt = _Doubt(domain)
    over_at = None
    for pause in _pauses():
        now = _look(patient, domain.uuid)
        if now is None or now.domid != domain.domid:
            return
        if now.power_state in _OVER:
            over_at = over_at or time.monotonic()
            if _preserved(now) or time.monotonic() - over_at > _GRACE_S:
                return
        else:
            doubt.grow()
        _check(deadline, f"Domain '{domain.name}' has not shut down in time", f"End it with: xm destroy {domain.name}")
        time.sleep(pause)


def until_rebooted(client: Client, domain: Domain, deadline: float | None, *, grace_s: float = _GRACE_S) -> bool:
    """Return True when ``domain`` runs in its next life, False when it is gone for good; raises at ``deadline``."""
    patient = client.patient(PATIENCE_S)
    doubt = _Doubt(domain)
    gone_at = None
    for pause in _pauses():
        now = _look(patient, domain.uuid)
        if now is None:
            # xend keeps a domain that it is restarting; one that it does not know will not come back.
            return False
        if now.domid != domain.domid and now.domid is not None and now.power_state not in _OVER:
            return True
        if now.domid is None or now.power_state in _OVER:
            gone_at = gone_at or time.monotonic()
            if time.monotonic() - gone_at > grace_s:
                return False
        else:
            doubt.grow()
            _check(deadline, f"Domain '{domain.name}' has not rebooted in time", f"Look: xm console {domain.name}")
        time.sleep(pause)
    raise AssertionError


def _preserved(domain: Domain) -> bool:
    """May the stopped domain be one that stays, for somebody to look at?"""
    config = domain.config
    return config is None or Action.PRESERVE in (config.on_poweroff, config.on_reboot, config.on_crash)


class _Doubt:
    """Says once, on the standard error, that a guest may not have heard."""

    def __init__(self, domain: Domain) -> None:
        self._name = domain.name
        self._until: float | None = time.monotonic() + _NOTE_S

    def grow(self) -> None:
        if self._until is not None and time.monotonic() >= self._until:
            self._until = None
            click.echo(
                f"Domain {self._name} has not reacted yet. A guest that was still booting does not hear the request: "
                f"ask again, look (xm console {self._name}), or end it (xm destroy {self._name}).",
                err=True,
            )


def _check(deadline: float | None, message: str, hint: str) -> None:
    if deadline is not None and time.monotonic() >= deadline:
        raise PyxenError(message, hint=hint)

"""Waiting for domains to end or to come back, also across a restart of xend."""

from __future__ import annotations

import time
from collections.abc import Iterator

from pyxen.api import Domain, PowerState
from pyxen.client import Client
from pyxen.errors import NotFound, PyxenError

PATIENCE_S = 15.0
"""For so long xend may be away while somebody waits."""
_GRACE_S = 30.0
"""A domain that has not come back so long after it went has failed to reboot."""
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
    """Return when this life of ``domain`` is over; raises PyxenError at ``deadline`` (monotonic seconds)."""
    patient = client.patient(PATIENCE_S)
    for pause in _pauses():
        now = _look(patient, domain.uuid)
        if now is None or now.domid != domain.domid or now.power_state in _OVER:
            return
        _check(deadline, f"Domain '{domain.name}' has not shut down in time", f"End it with: xm destroy {domain.name}")
        time.sleep(pause)


def until_rebooted(client: Client, domain: Domain, deadline: float | None, *, grace_s: float = _GRACE_S) -> bool:
    """Return True when ``domain`` runs in its next life, False when it is gone for good; raises at ``deadline``."""
    patient = client.patient(PATIENCE_S)
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
            _check(deadline, f"Domain '{domain.name}' has not rebooted in time", f"Look: xm console {domain.name}")
        time.sleep(pause)
    raise AssertionError


def _check(deadline: float | None, message: str, hint: str) -> None:
    if deadline is not None and time.monotonic() >= deadline:
        raise PyxenError(message, hint=hint)

"""The steps of a migration by name, so that tests can make each of them the last.

The environment variable ``PYXEN_FAULT`` names a step and what happens there, once: ``given:kill`` ends xend by
SIGKILL, ``loaded:cut`` breaks the connection. tests/guest/test_migration_faults.py goes through all of them.
"""

from __future__ import annotations

import os
import signal
from typing import Protocol

OUTGOING = ("offered", "sending", "sent", "given", "committed", "confirmed")
INCOMING = ("invited", "receiving", "loaded", "accepted", "arrived", "running")


class Cuttable(Protocol):
    def cut(self) -> None: ...


def reached(step: str, link: Cuttable) -> None:
    """Say that a step has been reached."""
    wanted, _, fault = os.environ.get("PYXEN_FAULT", "").partition(":")
    if wanted != step:
        return
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    del os.environ["PYXEN_FAULT"]
    link.cut()

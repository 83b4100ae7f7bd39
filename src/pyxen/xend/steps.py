"""The steps of what must never lose a domain, by name, so that tests can break each of them.

The environment variable ``PYXEN_FAULT`` names a step and what happens there, once: ``given:kill`` ends xend by
SIGKILL, ``save-frozen:stop`` stops it by SIGSTOP, so that a test can kill a monitor or fill a disk before it goes on,
and ``loaded:cut`` breaks the connection to the other host. tests/guest/test_faults.py and test_migration.py go through
all of them.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

OUTGOING = ("offered", "sending", "sent", "given", "committed", "confirmed")
INCOMING = ("invited", "receiving", "loaded", "accepted", "arrived", "running")
COPYING = ("copying", "copied", "switched")
"""Between sending and sent, where disks are copied."""
MADE = ("made",)
"""Between invited and receiving, on the other side."""
BUILD = ("build-noted", "build-laid-out", "build-started", "build-kept")
SAVE = ("save-noted", "save-frozen", "save-written", "save-named", "save-ended")
CHECKPOINT = (*SAVE[:-1], "save-gone-on")
SNAPSHOT = ("snapshot-noted", "snapshot-frozen", "snapshot-written", "snapshot-copied", "snapshot-named")
WAIT = ("wait-noted", "wait-copied", "wait-started")
"""Of what waits to become a clone, before anybody wants it."""
CLONE = ("clone-noted", "clone-named", "clone-woken", "build-kept")
"""Of one that has waited."""
REVERT = ("revert-noted", "revert-copied", "revert-down", "revert-placed", *BUILD)


def reached(step: str, cut: Callable[[], None] | None = None) -> None:
    """Say that a step has been reached; ``cut`` breaks the connection that it goes over."""
    wanted, _, fault = os.environ.get("PYXEN_FAULT", "").partition(":")
    if wanted != step:
        return
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    del os.environ["PYXEN_FAULT"]
    if fault == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif cut is not None:
        cut()

"""What QEMU says when it gives up, in words for the user."""

from __future__ import annotations

import re

from pyxen.errors import Conflict, EngineError, PyxenError, ResourceExhausted, Unsupported

_PREFIX = re.compile(r"^(?:qemu-system-x86_64|setpriv): ")
_OPTION = re.compile(r"^-\w+ [^ ]*?(?:,[^ ]*)?: ")


def translate(name: str, words: str) -> PyxenError:
    """The error for a QEMU that ended before it was ready; ``words`` are the end of its stderr."""
    lines = [_PREFIX.sub("", line) for line in words.splitlines()]
    reason = " / ".join(_OPTION.sub("", line) for line in lines if line and not line.startswith("warning:"))
    start = f"cannot start '{name}'"
    if "cannot set up guest memory" in reason or "Cannot allocate memory" in reason:
        return ResourceExhausted(
            f"{start}: the host won't give QEMU that much memory",
            hint="Give it less (memory=…), or shut a domain down.",
        )
    if "lock" in reason and ("Failed to get" in reason or "another process" in reason):
        return Conflict(
            f"{start}: one of its disks is in use by another process",
            hint="Mode w! shares a writable disk, for guests that know how to.",
        )
    if "Could not set up host forwarding rule" in reason:
        return ResourceExhausted(f"{start}: a port that it forwards has just been taken by another process")
    if "vnc" in reason.lower() and "in use" in reason:
        return ResourceExhausted(f"{start}: its VNC display has just been taken by another process")
    if "is not a valid device model name" in reason:
        return Unsupported(f"{start}: this QEMU has no such device: {reason}")
    return EngineError(f"{start}: QEMU says: {reason}" if reason else f"{start}: QEMU ended without a word")

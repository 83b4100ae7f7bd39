"""Landlock (landlock(7)): no file may be opened, no port used, nobody outside be signalled, from now on and for good.

What the kernel knows of it goes by the version of its interface; everything that it can forbid is forbidden.
"""

from __future__ import annotations

import ctypes
import os
import struct
from typing import Final

from pyxen.hypervisor import linux
from pyxen.hypervisor.jail.syscalls import NUMBERS

_VERSION: Final = 1
_FILE_RIGHTS: Final = {1: 13, 2: 14, 3: 15, 5: 16}
"""The number of rights on files that exist since a version, from linux/landlock.h: each is the next bit."""
_NET_SINCE, _NET_RIGHTS = 4, 0b11
_SCOPE_SINCE, _SCOPES = 6, 0b11
"""Abstract unix sockets and signals."""
_RULESET: Final = struct.Struct("=QQQ")


def version() -> int:
    """The kernel's interface version, 0 where it has no Landlock or it is switched off."""
    try:
        return linux.checked("syscall", NUMBERS["landlock_create_ruleset"], None, 0, _VERSION)
    except OSError:
        return 0


def ruleset(abi: int) -> bytes:
    """``struct landlock_ruleset_attr`` with all that version ``abi`` (at least 1) can forbid."""
    files = max(count for since, count in _FILE_RIGHTS.items() if since <= abi)
    net = _NET_RIGHTS if abi >= _NET_SINCE else 0
    scopes = _SCOPES if abi >= _SCOPE_SINCE else 0
    size = 24 if scopes else 16 if net else 8
    return _RULESET.pack((1 << files) - 1, net, scopes)[:size]


def restrict(abi: int) -> None:
    """Forbid it all to this thread and those that it will start. Raises OSError."""
    attributes = ruleset(abi)
    pointer = ctypes.c_char_p(attributes)
    fd = linux.checked("syscall", NUMBERS["landlock_create_ruleset"], pointer, len(attributes), 0)
    try:
        linux.checked("syscall", NUMBERS["landlock_restrict_self"], fd, 0)
    finally:
        os.close(fd)

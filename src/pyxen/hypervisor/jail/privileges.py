"""Give up what a process may do beyond others: capabilities, user, groups, and the ways to get any of it back.

See capabilities(7), prctl(2).
"""

from __future__ import annotations

import errno
import os
import struct
from typing import Final

from pyxen.hypervisor import linux

_SET_DUMPABLE, _CAPBSET_DROP, _SET_NO_NEW_PRIVS, _CAP_AMBIENT = 4, 24, 38, 47
_AMBIENT_CLEAR_ALL: Final = 4
_CAPABILITY_VERSION: Final = 0x20080522
_NO_CAPABILITIES: Final = bytes(24)


def no_new() -> None:
    """No program that is executed may give more than the process has. Seccomp and Landlock ask for it."""
    linux.prctl(_SET_NO_NEW_PRIVS, 1)


def empty_bounding_set() -> None:
    """Where the right to do that is missing, there is no harm: a bounding set only bounds what no_new() rules out."""
    for capability in range(64):
        try:
            linux.prctl(_CAPBSET_DROP, capability)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.EPERM):  # the kernel knows no more; or we may not
                return
            raise


def become(uid: int) -> None:
    """Be the user ``uid``, with the group of the same number and no other. Raises OSError."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def no_capabilities() -> None:
    """Lose what is left of them. Raises OSError."""
    linux.prctl(_CAP_AMBIENT, _AMBIENT_CLEAR_ALL)
    linux.checked("capset", struct.pack("=Ii", _CAPABILITY_VERSION, 0), _NO_CAPABILITIES)


def not_dumpable() -> None:
    """Nobody but root may look into this process's memory: not even another domain's process of the same user."""
    linux.prctl(_SET_DUMPABLE, 0)

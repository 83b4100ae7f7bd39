"""A mount, network, IPC and host name's space of the process's own, and a root directory with nothing in it.

Root may just ask for them; another user gets them along with a user namespace, where the host allows those. That must
happen while the process has but one thread. See unshare(2), user_namespaces(7), pivot_root(2).
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path
from typing import Final

from pyxen.hypervisor import linux
from pyxen.hypervisor.jail.syscalls import NUMBERS

_NEWNS, _NEWUTS, _NEWIPC, _NEWUSER, _NEWNET = 0x00020000, 0x04000000, 0x08000000, 0x10000000, 0x40000000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 1, 2, 4, 8
_MS_MOVE, _MS_REC, _MS_SLAVE = 0x2000, 0x4000, 0x80000
_MNT_DETACH: Final = 2
_OWN: Final = _NEWNS | _NEWUTS | _NEWIPC | _NEWNET


def unshare() -> None:
    """Enter namespaces of our own. Raises OSError where the host does not let us."""
    if os.geteuid() == 0:
        linux.checked("unshare", _OWN)
    else:
        uid, gid = os.geteuid(), os.getegid()
        linux.checked("unshare", _NEWUSER | _OWN)
        # The same numbers inside. Without the first line nobody but the host's root may write the third.
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    # What the host unmounts goes from here too; what is done here stays here.
    _mount(None, "/", None, _MS_REC | _MS_SLAVE)


def empty_root(place: Path) -> None:
    """Make an empty, read-only file system the root, after :func:`unshare`; it is mounted on the folder ``place``.

    Raises OSError.
    """
    _mount("none", str(place), "tmpfs", _MS_RDONLY | _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, "mode=0555,size=4k")
    os.chdir(place)
    try:
        # Both at the same place: the old root then lies on top of the new one, where it is taken off.
        linux.checked("syscall", NUMBERS["pivot_root"], b".", b".")
        linux.checked("umount2", b".", _MNT_DETACH)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # The first root of all, an initial RAM disk's, can't be left that way: cover it.
        _mount(".", "/", None, _MS_MOVE)
        os.chroot(".")
    os.chdir("/")
    if found := list(Path("/").iterdir()):
        raise OSError(errno.ENOTEMPTY, f"the new root holds {found[0]}")


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: str = "") -> None:
    texts = [None if each is None else ctypes.c_char_p(os.fsencode(each)) for each in (source, target, kind)]
    linux.checked("mount", *texts, flags, data.encode())

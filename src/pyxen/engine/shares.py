"""Folders of the host for a guest, opened for a monitor that runs as a user of its own.

To a folder that the guest may change, that user has to be the folder's owner: an idmapped mount (Linux 5.12,
mount_setattr(2)) makes it so, for this one folder and this one process.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path

from pyxen.config.model import Share
from pyxen.errors import ConfigError, Unsupported
from pyxen.hypervisor.linux import checked

_OPEN_TREE, _MOUNT_SETATTR = 428, 442
_AT_FDCWD, _AT_EMPTY_PATH = -100, 0x1000
_OPEN_TREE_CLONE = 1
_MOUNT_ATTR_IDMAP = 0x0010_0000


class _MountAttributes(ctypes.Structure):
    """struct mount_attr (Linux, include/uapi/linux/mount.h)."""

    _fields_ = (
        ("set", ctypes.c_uint64),
        ("clear", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("user_namespace", ctypes.c_uint64),
    )


def open_share(share: Share, uid: int | None) -> int:
    """A descriptor of the folder, for a process that runs as ``uid`` (None: as this one's user). Blocking.

    Raises ConfigError where there is no such folder, Unsupported where it can't be made writable.
    """
    try:
        folder = os.open(share.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"cannot open the folder {share.path}: {error.strerror}", key="p9") from None
    if uid is None or share.readonly:
        return folder
    try:
        return _mapped(folder, uid)
    except (OSError, subprocess.SubprocessError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no user namespace could be made"
        raise Unsupported(
            f"the folder {share.path} can't be given to a domain to write to: {reason}",
            hint="Its file system must support idmapped mounts (ext4, XFS and Btrfs do). Elsewhere run xend as the "
            "folder's owner, or share it with readonly=1.",
        ) from None
    finally:
        os.close(folder)


def _mapped(folder: int, uid: int) -> int:
    """A mount of the folder, nowhere attached, in which what its owner has belongs to ``uid``."""
    owner = os.fstat(folder)
    path = f"/proc/self/fd/{folder}".encode()
    mount = checked("syscall", _OPEN_TREE, _AT_FDCWD, path, _OPEN_TREE_CLONE | os.O_CLOEXEC)
    try:
        namespace = _namespace((owner.st_uid, uid), (owner.st_gid, uid))
        try:
            attributes = _MountAttributes(_MOUNT_ATTR_IDMAP, 0, 0, namespace)
            size = ctypes.sizeof(attributes)
            checked("syscall", _MOUNT_SETATTR, mount, b"", _AT_EMPTY_PATH, ctypes.byref(attributes), size)
        finally:
            os.close(namespace)
    except BaseException:
        os.close(mount)
        raise
    return mount


def _namespace(user: tuple[int, int], group: tuple[int, int]) -> int:
    """A user namespace that maps one user and one group, as an open file."""
    holder = subprocess.Popen(
        ["unshare", "--user", "--", "sh", "-c", "echo; read line"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    with holder:
        assert holder.stdout is not None
        if not holder.stdout.readline():
            raise subprocess.SubprocessError
        for kind, (inside, outside) in (("uid_map", user), ("gid_map", group)):
            Path(f"/proc/{holder.pid}/{kind}").write_text(f"{inside} {outside} 1")
        return os.open(f"/proc/{holder.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)

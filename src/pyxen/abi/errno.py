"""Xen's errno values (xen/include/public/errno.h) and the exception by which a handler answers with one."""

from __future__ import annotations

from typing import Final

EPERM: Final = 1
ENOENT: Final = 2
ESRCH: Final = 3
EIO: Final = 5
ENXIO: Final = 6
E2BIG: Final = 7
EAGAIN: Final = 11
ENOMEM: Final = 12
EACCES: Final = 13
EFAULT: Final = 14
EBUSY: Final = 16
EEXIST: Final = 17
EXDEV: Final = 18
ENODEV: Final = 19
EINVAL: Final = 22
ENOSPC: Final = 28
ERANGE: Final = 34
EDEADLK: Final = 35
ENOSYS: Final = 38
ENODATA: Final = 61
ETIME: Final = 62
EOPNOTSUPP: Final = 95
ENOBUFS: Final = 105


class XenError(Exception):
    """A hypercall's refusal. ``errno`` is positive here; the guest sees it negative."""

    def __init__(self, errno: int, why: str = "") -> None:
        super().__init__(why or f"errno {errno}")
        self.errno = errno

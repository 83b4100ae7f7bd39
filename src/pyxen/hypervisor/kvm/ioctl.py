"""ioctl(2) on KVM's descriptors.

``fcntl.ioctl`` takes integers of 31 bits only, answers with the buffer instead of the result for immutable buffers,
and refuses those over 1,024 bytes: so structures go in as ``bytearray``, and the one address that is larger through
ctypes.
"""

from __future__ import annotations

import ctypes
import fcntl
import os

from pyxen.errors import EngineError
from pyxen.hypervisor.kvm.uapi import Call


def call(fd: int, number: Call, argument: int | bytearray = 0) -> int:
    """The call's result; a ``bytearray`` holds the answer afterwards. Raises EngineError in KVM's name."""
    try:
        return fcntl.ioctl(fd, number, argument)
    except OSError as error:
        raise refusal(number, error.errno) from error


def call_with_address(fd: int, number: Call, address: int) -> int:
    """The same with an integer of up to 64 bits."""
    libc = ctypes.CDLL(None, use_errno=True)
    result: int = libc.ioctl(ctypes.c_int(fd), ctypes.c_ulong(number), ctypes.c_ulong(address))
    if result < 0:
        raise refusal(number, ctypes.get_errno())
    return result


def refusal(number: Call, code: int | None) -> EngineError:
    """The error for a call that KVM refused with errno ``code``."""
    reason = os.strerror(code) if code is not None else "for no known reason"
    return EngineError(f"KVM refused {number.name}: {reason}")

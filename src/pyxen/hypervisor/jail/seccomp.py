"""seccomp(2): put a filter on all threads of this process, and name the calls that it stops.

``trap`` is for development: with TRAP as the filter's last word, the call is named on the standard error, with the line
of Python that made it, before the process ends. In LOG mode the kernel's log names it and lets it pass.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Any, Final

from pyxen.hypervisor import linux
from pyxen.hypervisor.jail.bpf import Instruction, assemble
from pyxen.hypervisor.jail.syscalls import NAMES, NUMBERS

_SET_MODE_FILTER: Final = 1
_TSYNC: Final = 1
_SA_SIGINFO: Final = 4
_SI_SYSCALL: Final = 24  # siginfo_t.si_syscall
_kept: list[object] = []
"""What the C side points to for as long as the process lives."""


class _Program(ctypes.Structure):
    """``struct sock_fprog``."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


class _SigAction(ctypes.Structure):
    """The C library's ``struct sigaction`` on x86-64."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ulong * 16),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


def install(program: Sequence[Instruction]) -> None:
    """For good, and for all threads. No new privileges must have been set, or be had. Raises OSError."""
    code = assemble(program)
    form = _Program(len(program), code)
    found = linux.checked("syscall", NUMBERS["seccomp"], _SET_MODE_FILTER, _TSYNC, ctypes.byref(form))
    if found != 0:
        raise OSError(0, f"thread {found} has a filter of its own")


def trap() -> None:
    """Name trapped calls on the standard error. Before the filter: it needs executable memory of its own."""

    def trapped(number: int, info: int, context: int) -> None:
        nr = ctypes.c_int.from_address(info + _SI_SYSCALL).value
        words = f"the jail stopped the system call {NAMES.get(nr, '?')} ({nr}), made here:\n"
        stack = "".join(traceback.format_stack(sys._getframe(1)))
        os.write(2, (words + stack).encode())
        os._exit(128 + signal.SIGSYS)

    handler: Any = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_size_t, ctypes.c_size_t)(trapped)
    action = _SigAction(handler=ctypes.cast(handler, ctypes.c_void_p).value, flags=_SA_SIGINFO)
    _kept.append(handler)
    linux.checked("sigaction", int(signal.SIGSYS), ctypes.byref(action), None)

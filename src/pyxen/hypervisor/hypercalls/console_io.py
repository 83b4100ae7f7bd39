"""CONSOLE_IO: output before, and beside, the real console (earlyprintk=xen)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyxen.abi.errno import ENOSYS
from pyxen.abi.hypercall import CONSOLE_READ, CONSOLE_WRITE
from pyxen.hypervisor.hypercalls import guest

if TYPE_CHECKING:
    from pyxen.hypervisor.vcpu import Vcpu

MAX_WRITE = 65536
"""Bytes that one call prints at most: a guest must not fill our memory."""


def handle(vcpu: Vcpu, args: tuple[int, ...], bits: int) -> int:
    """(cmd, count, pointer). There is never anything to read."""
    cmd, count = args[0] & 0xFFFFFFFF, args[1] & 0xFFFFFFFF
    if cmd == CONSOLE_READ:
        return 0
    if cmd != CONSOLE_WRITE:
        return -ENOSYS
    vcpu.domain.machine.console_write(bytes(guest.read(vcpu, args[2], min(count, MAX_WRITE))))
    return 0

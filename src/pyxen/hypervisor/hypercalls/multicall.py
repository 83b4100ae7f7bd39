"""MULTICALL: many hypercalls in one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from pyxen.abi.errno import E2BIG, EFAULT, ENOSYS, XenError
from pyxen.abi.hypercall import MULTICALL_ENTRY
from pyxen.hypervisor.hypercalls import guest
from pyxen.hypervisor.memory import BadAddress

if TYPE_CHECKING:
    from pyxen.hypervisor.vcpu import Vcpu

MAX_CALLS = 1024

_ULONG = {64: (1 << 64) - 1, 32: (1 << 32) - 1}


class Multicall:
    """Serves a list of calls from ``table``, in which there is no multicall: they don't nest."""

    def __init__(self, table: Mapping[int, Callable[[Vcpu, tuple[int, ...], int], int]]) -> None:
        self._table = table

    def handle(self, vcpu: Vcpu, args: tuple[int, ...], bits: int) -> int:
        """(pointer to entries, count). Each entry's ``result`` is written; the answer is 0."""
        count = args[1] & 0xFFFFFFFF
        if count > MAX_CALLS:
            return -E2BIG
        size = MULTICALL_ENTRY.size(bits)
        held_since = time.monotonic()
        for index in range(count):
            address = args[0] + index * size
            entry = guest.get(vcpu, MULTICALL_ENTRY, address, bits)
            result = self._call(vcpu, entry.op, tuple(entry[2:]), bits)
            guest.put(vcpu, MULTICALL_ENTRY, address, bits, "result", result & _ULONG[bits])
            # A list of long calls must not keep the domain's other VCPUs, its back ends and its owner waiting.
            held_since = vcpu.domain.make_way(held_since)
        return 0

    def _call(self, vcpu: Vcpu, nr: int, args: tuple[int, ...], bits: int) -> int:
        handler = self._table.get(nr)
        if handler is None:
            return -ENOSYS
        try:
            return handler(vcpu, args, bits)
        except XenError as error:
            return -error.errno
        except BadAddress:
            return -EFAULT

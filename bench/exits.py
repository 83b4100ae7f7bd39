"""Hypercalls a second of CPU time, of a guest that does nothing else, against a bare loop around KVM_RUN in Python.

``python -m bench.exits [COUNT]`` prints one line of JSON; it needs no more than a KVM that runs a few instructions.
The guest is in long mode and makes COUNT hypercalls of one kind. Those of ours go the whole way: exit, handler, result,
entry. The bare loop only enters the guest again.
"""

from __future__ import annotations

import fcntl
import json
import statistics
import struct
import sys
import threading
import time
from typing import Final

from pyxen.abi import event_channel, hypercall, sched
from pyxen.abi.vcpu import Context64
from pyxen.hypervisor.builder import build, hypercall_sites
from pyxen.hypervisor.domain import Domain
from pyxen.hypervisor.kvm.uapi import RUN_EXIT_REASON, Call, Exit
from pyxen.hypervisor.kvm_machine import KvmMachine
from pyxen.hypervisor.loop import Loop
from pyxen.hypervisor.memory import GuestMemory

_RUNS: Final = 5
_CODE, _ARGUMENT, _TABLES = 0x1000, 0x3000, 0x10000
_FAR_NS: Final = 1 << 60
_PRESENT_WRITABLE, _LARGE = 3, 1 << 7
_PROTECTED_PAGING, _PAE, _LONG_MODE = 1 << 31 | 1, 1 << 5, 1 << 8


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 30_000
    kinds = {
        "bare": None,
        "xen_version": (hypercall.XEN_VERSION, 0, 0),
        "evtchn_send": (hypercall.EVENT_CHANNEL_OP, event_channel.SEND, _ARGUMENT),
        "set_timer_op": (hypercall.SET_TIMER_OP, _FAR_NS, 0),
    }
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(_RUNS):
        for kind, call in kinds.items():
            seconds = _bare(count) if call is None else _hypercalls(count, *call)
            rates[kind].append(count / seconds)
    print(json.dumps({kind: round(statistics.median(values)) for kind, values in rates.items()}))


def _code(count: int, number: int, first: int, second: int) -> bytes:
    """The guest: a hypercall ``count`` times, then a shutdown."""
    trap = bytes([0xE7, hypercall_sites.PORT])
    call = _registers(number, first, second) + trap
    again = bytes([0x41, 0xFF, 0xCC, 0x75, -(len(call) + 5) & 0xFF])  # dec r12d; jnz
    end = _registers(hypercall.SCHED_OP, sched.SHUTDOWN, _ARGUMENT + 8) + trap + b"\xeb\xfe"
    return b"\x41\xbc" + struct.pack("<I", count) + call + again + end  # mov r12d, count


def _registers(number: int, first: int, second: int) -> bytes:
    # mov eax, number; mov rdi, first; mov esi, second
    return (
        b"\xb8"
        + struct.pack("<I", number)
        + b"\x48\xbf"
        + struct.pack("<Q", first)
        + b"\xbe"
        + struct.pack("<I", second)
    )


def _memory(code: bytes, port: int) -> GuestMemory:
    memory = build.allocate(4 << 20)
    memory.write(_CODE, code)
    memory.put_u32(_ARGUMENT, port)
    memory.put_u64(_TABLES, _TABLES + 0x1000 | _PRESENT_WRITABLE)
    memory.put_u64(_TABLES + 0x1000, _TABLES + 0x2000 | _PRESENT_WRITABLE)
    for number in range(2):
        memory.put_u64(_TABLES + 0x2000 + 8 * number, number << 21 | _PRESENT_WRITABLE | _LARGE)
    return memory


def _context() -> Context64:
    values = dict.fromkeys(Context64._fields, 0)
    values |= {"cr0": _PROTECTED_PAGING, "cr3": _TABLES, "cr4": _PAE, "efer": _LONG_MODE, "rip": _CODE, "rflags": 2}
    return Context64(**values)


class _Machine:
    """A domain of one VCPU with nothing but its code; ``done`` is set when it has stopped."""

    def __init__(self, code: bytes) -> None:
        self.loop = Loop()
        self.done = threading.Event()
        self.error = ""
        memory = _memory(code, port=1)
        self.kvm = KvmMachine(
            memory,
            1,
            self.loop,
            domid=1,
            console=lambda data: None,
            stopped=lambda reason: self.done.set(),
            failed=self._failed,
        )
        self.domain = Domain(memory, self.kvm, domid=1, vcpus=1, memory_map=build.memory_map(memory))
        self.kvm.attach(self.domain)
        port = self.domain.evtchn.alloc_unbound()
        assert port == 1
        self.domain.evtchn.bind_backend(port, lambda: None)
        self.kvm.vcpu_up(0, _context())

    def _failed(self, words: str) -> None:
        self.error = words
        self.done.set()

    def close(self) -> None:
        self.kvm.close()
        self.loop.close()


def _hypercalls(count: int, number: int, first: int, second: int) -> float:
    """Seconds of CPU time for ``count`` hypercalls: other work on the machine counts little then."""
    machine = _Machine(_code(count, number, first, second))
    try:
        start = time.process_time()
        machine.kvm.start(paused=False)
        machine.done.wait()
        seconds = time.process_time() - start
        if machine.error:
            raise RuntimeError(machine.error)
    finally:
        machine.close()
    return seconds


def _bare(count: int) -> float:
    """Seconds for as many exits of the same guest with nothing done for them."""
    machine = _Machine(_code(count, 0, 0, 0))
    vcpu = machine.kvm._processors[0]
    try:
        vcpu._attend()
        fd, reason, run = vcpu.kvm._fd, vcpu.kvm.page[RUN_EXIT_REASON : RUN_EXIT_REASON + 4].cast("I"), int(Call.RUN)
        start = time.process_time()
        for _ in range(count):
            fcntl.ioctl(fd, run, 0)
            if reason[0] != Exit.IO:
                raise RuntimeError(vcpu.kvm.failure())
        return time.process_time() - start
    finally:
        machine.close()


if __name__ == "__main__":
    main()

"""A whole domain around a guest of a few hundred bytes: KVM, hypercalls, events, timers, as in a domain's process."""

from __future__ import annotations

import struct
import threading
from typing import Any

from pyxen.abi import hypercall as nr
from pyxen.abi import sched
from pyxen.abi import vcpu as abi
from pyxen.abi.layout import Layout
from pyxen.hypervisor.builder import build, entry, layout
from pyxen.hypervisor.builder.build import Built
from pyxen.hypervisor.domain import Domain
from pyxen.hypervisor.kvm_machine import KvmMachine
from pyxen.hypervisor.loop import Loop
from tests.unit.hypervisor.kvm.assembler import Program

DOMID = 7
MEMORY = 16 << 20
CODE = 0x100000
RESULTS = 0x110000
"""Where each call's result lies, 8 bytes after the last one's."""
_ARGUMENTS = 0x120000
PAGES = 0x200000
"""From here on a test may give pages to Xen."""
_TABLES = 0x180000
_PATIENCE_S = 30.0


class MicroDomain:
    """Build the guest's program with ``call`` and ``op``, then ``run`` it to its end (SHUTDOWN_poweroff)."""

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.program = Program(bits)
        self.memory = build.allocate(MEMORY)
        self.printed = b""
        self.reason: int | None = None
        self.failure: str | None = None
        self._calls = 0
        self._next = _ARGUMENTS
        self._loop = Loop()
        self._over = threading.Event()
        self.machine = KvmMachine(
            self.memory,
            1,
            self._loop,
            domid=DOMID,
            console=self._print,
            stopped=self._stopped,
            failed=self._failed,
        )
        self.domain = Domain(
            self.memory, self.machine, domid=DOMID, vcpus=1, memory_map=build.memory_map(self.memory), uuid=bytes(16)
        )
        self.machine.boot(Built(self.memory, CODE, 0, 32))
        self.machine.attach(self.domain)
        self.domain.set_up_special_pages(console_gfn=layout.CONSOLE_GFN, store_gfn=layout.XENSTORE_GFN)

    def put(self, data: bytes) -> int:
        """Place ``data`` in the guest's memory; its address."""
        address = self._next
        self.memory.write(address, data)
        self._next += -(-len(data) // 8) * 8 + 8
        return address

    def call(self, number: int, *args: int) -> int:
        """The guest is to make this call; the number by which ``result`` knows it."""
        self.program.call(number, *args, to=RESULTS + 8 * self._calls)
        self._calls += 1
        return self._calls - 1

    def op(self, number: int, cmd: int, structure: Layout[Any], value: tuple[object, ...], *rest: int) -> int:
        """The same with (cmd, pointer to a structure, rest); where the structure lies."""
        address = self.put(structure.pack(value, self.bits))
        self.call(number, cmd, address, *rest)
        return address

    def run(self) -> None:
        """Let the guest run to its end."""
        end = self.put(sched.SHUTDOWN_ARG.pack(sched.Shutdown(sched.SHUTDOWN_POWEROFF), self.bits))
        self.program.call(nr.SCHED_OP, sched.SHUTDOWN, end)
        self.program.raw("ebfe")
        self.memory.write(CODE, self.program.code)
        if self.bits == 64:
            self._enter_long_mode()
        thread = threading.Thread(target=self._loop.run, name="loop")
        thread.start()
        self.machine.start(paused=False)
        try:
            assert self._over.wait(_PATIENCE_S), "the guest did not come to its end"
        finally:
            self.machine.pause()
            self._loop.stop()
            thread.join()
            self.machine.close()
            self._loop.close()
        assert self.failure is None, self.failure
        assert self.reason == sched.SHUTDOWN_POWEROFF, f"the guest ended by {self.reason}"

    def result(self, call: int) -> int:
        """What the guest got in RAX or EAX, as a signed number."""
        return int.from_bytes(self.memory.read(RESULTS + 8 * call, self.bits // 8), "little", signed=True)

    def results(self) -> list[int]:
        return [self.result(call) for call in range(self._calls)]

    def _enter_long_mode(self) -> None:
        """4 GiB mapped one to one by large pages."""
        present, large = 3, 0x83
        self.memory.write(_TABLES, struct.pack("<Q", _TABLES + 0x1000 | present))
        self.memory.write(
            _TABLES + 0x1000, struct.pack("<4Q", *(_TABLES + 0x2000 + 0x1000 * n | present for n in range(4)))
        )
        self.memory.write(_TABLES + 0x2000, struct.pack("<2048Q", *(n << 21 | large for n in range(2048))))
        zeros = dict.fromkeys(abi.Context64._fields, 0)
        there = {"rip": CODE, "rsp": CODE, "cr0": 0x80000011, "cr3": _TABLES, "cr4": 0x20, "efer": 0x500}
        kvm = self.machine._processors[0].kvm
        sregs = kvm.get_sregs()
        regs = entry.initialised(sregs, abi.Context64(**(zeros | there)))
        kvm.set_sregs(sregs)
        kvm.set_regs(regs)

    def _print(self, data: bytes) -> None:
        self.printed += data

    def _stopped(self, reason: int) -> None:
        self.reason = reason
        self._over.set()

    def _failed(self, why: str) -> None:
        self.failure = why
        self._over.set()

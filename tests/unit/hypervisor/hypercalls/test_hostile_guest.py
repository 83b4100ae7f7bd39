"""A hostile guest: calls with whatever arguments, in whatever order, while it scribbles over all of its memory.

No exception may come out of Domain.hypercall or of what the host does meanwhile, and nothing outside of the guest's
memory may change. ``PYXEN_FUZZ`` multiplies the number of calls: ``PYXEN_FUZZ=10`` makes a million.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import random
from collections.abc import Callable
from typing import Any

import pytest

from pyxen.abi import event_channel, grant_table, hvm, memory, sched, vcpu
from pyxen.abi import hypercall as nr
from pyxen.abi.errno import XenError
from pyxen.abi.grant_table import GrantError
from pyxen.abi.layout import Layout
from pyxen.abi.shared_info import DOMID_SELF
from pyxen.hypervisor.evtchn import BackendPort
from pyxen.hypervisor.hypercalls import TABLE
from pyxen.hypervisor.memory import GuestMemory
from tests.unit.hypervisor.hypercalls.registers import FLAT, LONG_MODE
from tests.unit.hypervisor.hypercalls.scripted import NOWHERE, OUTSIDE, PAGE, PAGES, SCRATCH, SIZE, ScriptedGuest

SEEDS = 20
CALLS = 5_000 * int(os.environ.get("PYXEN_FUZZ", "1"))
LIFETIME = 1_000
"""Calls that one domain lives."""
CANARY = b"\xc5"
GUARD = 16 * PAGE

COMMANDS = {
    nr.MEMORY_OP: 30,
    nr.XEN_VERSION: 12,
    nr.CONSOLE_IO: 3,
    nr.GRANT_TABLE_OP: 14,
    nr.VM_ASSIST: 3,
    nr.VCPU_OP: 17,
    nr.SCHED_OP: 9,
    nr.EVENT_CHANNEL_OP: 16,
    nr.PHYSDEV_OP: 30,
    nr.HVM_OP: 27,
}


STRUCTURES: dict[int, dict[int, Layout[Any]]] = {
    nr.MEMORY_OP: {
        0: memory.RESERVATION_ARG,
        1: memory.RESERVATION_ARG,
        3: memory.DOMAIN_ID_ARG,
        4: memory.DOMAIN_ID_ARG,
        6: memory.RESERVATION_ARG,
        7: memory.ADD_TO_PHYSMAP_ARG,
        9: memory.MEMORY_MAP_ARG,
        14: memory.DOMAIN_ID_ARG,
        15: memory.REMOVE_FROM_PHYSMAP_ARG,
        23: memory.ADD_TO_PHYSMAP_BATCH_ARG,
    },
    nr.GRANT_TABLE_OP: {
        0: grant_table.MAP_GRANT_REF_ARG,
        1: grant_table.UNMAP_GRANT_REF_ARG,
        2: grant_table.SETUP_TABLE_ARG,
        5: grant_table.COPY_ARG,
        6: grant_table.QUERY_SIZE_ARG,
        8: grant_table.SET_VERSION_ARG,
        9: grant_table.GET_STATUS_FRAMES_ARG,
        10: grant_table.GET_VERSION_ARG,
        11: grant_table.SWAP_GRANT_REF_ARG,
    },
    nr.VCPU_OP: {
        5: vcpu.REGISTER_AREA_ARG,
        6: vcpu.SET_PERIODIC_TIMER_ARG,
        8: vcpu.SET_SINGLESHOT_TIMER_ARG,
        10: vcpu.REGISTER_VCPU_INFO_ARG,
        13: vcpu.REGISTER_AREA_ARG,
        14: vcpu.REGISTER_AREA_ARG,
        15: vcpu.REGISTER_AREA_ARG,
    },
    nr.SCHED_OP: {2: sched.SHUTDOWN_ARG, 3: sched.POLL_ARG, 5: sched.SHUTDOWN_ARG, 6: sched.WATCHDOG_ARG},
    nr.EVENT_CHANNEL_OP: {
        0: event_channel.BIND_INTERDOMAIN_ARG,
        1: event_channel.BIND_VIRQ_ARG,
        3: event_channel.PORT_ARG,
        4: event_channel.PORT_ARG,
        5: event_channel.STATUS_ARG,
        6: event_channel.ALLOC_UNBOUND_ARG,
        7: event_channel.BIND_IPI_ARG,
        8: event_channel.BIND_VCPU_ARG,
        9: event_channel.PORT_ARG,
        10: event_channel.RESET_ARG,
        11: event_channel.INIT_CONTROL_ARG,
        12: event_channel.EXPAND_ARRAY_ARG,
        13: event_channel.SET_PRIORITY_ARG,
    },
    nr.HVM_OP: {
        0: hvm.PARAM_ARG,
        1: hvm.PARAM_ARG,
        9: hvm.PAGETABLE_DYING_ARG,
        15: hvm.GET_MEM_TYPE_ARG,
        23: hvm.EVTCHN_UPCALL_VECTOR_ARG,
    },
}
RARE = {(nr.EVENT_CHANNEL_OP, event_channel.RESET), (nr.EVENT_CHANNEL_OP, event_channel.CLOSE)}
"""Calls that undo what others have built up."""


class Hostile(ScriptedGuest):
    """Its memory lies between two guards."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__(vcpus=rng.choice((1, 3, 34)), bits=rng.choice((64, 32)))
        self.rng = rng
        self.guarded = mmap.mmap(-1, SIZE + 2 * GUARD)
        self.guarded[:GUARD] = self.guarded[-GUARD:] = CANARY * GUARD
        self.memory.remove(self.memory.regions[0])
        self.memory.add(0, memoryview(self.guarded)[GUARD : GUARD + SIZE])
        assert isinstance(self.memory, GuestMemory)
        self.backends: list[BackendPort] = []
        self.actions: list[Callable[[], object]] = [
            self.bind,
            self.notify,
            self.scribble,
            self.use_grant,
            self.pass_time,
            self.grant,
            lambda: self.domain.check_upcall(rng.randrange(len(self.domain.vcpus))),
        ]
        self.place_shared_info()
        self.machine.unmapped = {rng.randrange(SIZE // PAGE) for _ in range(8)}

    def number(self) -> int:
        """One that is likely to mean something, or to be at an edge."""
        rng = self.rng
        kind = rng.randrange(12)
        if kind < 4:
            return rng.randrange(8)
        if kind == 4:
            return rng.choice((DOMID_SELF, 7, 0, 4, 0xFF, 63, 64, 128, 1023, 1024, 4095, 4096, 1 << 17))
        if kind == 5:
            return PAGES + rng.randrange(64)
        if kind == 6:
            return OUTSIDE + rng.randrange(4)
        if kind == 7:
            return SCRATCH + rng.randrange(0x10000)
        if kind == 8:
            return rng.randrange(SIZE) & ~rng.choice((0, 7, 4095))
        if kind == 9:
            return rng.choice((1 << 31, (1 << 32) - 1, 1 << 63, (1 << 64) - 1, NOWHERE, SIZE - 1, SIZE))
        return rng.getrandbits(rng.choice((8, 16, 32, 64)))

    def structure(self) -> int:
        """Some numbers in a row, of whatever widths; their address."""
        rng = self.rng
        width = rng.choice((2, 4, 4, 8, 8))
        fields = [self.number() & (1 << 8 * width) - 1 for _ in range(rng.randrange(1, 16))]
        if rng.randrange(2):
            fields[0] = DOMID_SELF
        address = SCRATCH + 8 * rng.randrange(0x2000)
        self.memory.write(address, b"".join(field.to_bytes(width, "little") for field in fields))
        return address

    def sensible(self, name: str) -> int:
        """A value that the field of this name may well have."""
        rng = self.rng
        if name in ("dom", "domid", "remote_dom", "source_domid", "dest_domid"):
            return rng.choice((DOMID_SELF, DOMID_SELF, 0, 7))
        if name.endswith(("gfn", "gpfn", "mfn", "pfn")) or name in ("source", "dest"):
            return rng.choice((PAGES + rng.randrange(64), OUTSIDE + rng.randrange(4), rng.randrange(12)))
        if name in ("vcpu", "version", "reason", "id", "space"):
            return rng.randrange(4)
        if name in ("offset", "source_offset", "dest_offset"):
            return 8 * rng.randrange(512)
        if name == "address" or name.endswith(("_list", "s", "_start", "buffer")):
            return rng.choice((SCRATCH, PAGES * PAGE)) + 4 * rng.randrange(0x2000)
        return rng.randrange(12)

    def filled(self, layout: Layout[Any], bits: int) -> int:
        """A structure in which only a field or two are odd; its address."""
        rng = self.rng
        data = bytearray(rng.randbytes(layout.size(bits)))
        for name in layout.names:
            width = layout.width(bits, name)
            value = self.number() if rng.randrange(8) == 0 else self.sensible(name)
            at = layout.offset(bits, name)
            data[at : at + width] = (value & (1 << 8 * width) - 1).to_bytes(width, "little")
        address = SCRATCH + 8 * rng.randrange(0x2000)
        self.memory.write(address, data)
        return address

    def context(self) -> int:
        """Registers for a VCPU, right but for one byte; the address."""
        rng = self.rng
        mode, layout, value = rng.choice(((0, vcpu.CONTEXT_32, FLAT), (1, vcpu.CONTEXT_64, LONG_MODE)))
        data = bytearray(mode.to_bytes(8, "little") + layout.pack(value, 64)).ljust(vcpu.CONTEXT_SIZE, b"\0")
        if rng.randrange(2):
            data[rng.randrange(len(data))] = rng.getrandbits(8)
        address = SCRATCH + 8 * rng.randrange(0x2000)
        self.memory.write(address, data)
        return address

    def attack(self) -> tuple[int, int, tuple[int, ...], int]:
        """VCPU, number, registers and mode of one call."""
        rng = self.rng
        number = rng.choice(list(COMMANDS)) if rng.randrange(10) else rng.choice([*TABLE, rng.getrandbits(32)])
        registers = [self.structure() if rng.randrange(3) else self.number() for _ in range(6)]
        if number in COMMANDS and rng.randrange(10):
            registers[0] = rng.randrange(COMMANDS[number])
        if number == nr.GRANT_TABLE_OP and rng.randrange(4):
            registers[2] = rng.choice((1, 1, 1, 2, 5))
        if number == nr.VCPU_OP and rng.randrange(4):
            registers[1] = rng.randrange(len(self.domain.vcpus))
            registers[2] = self.structure()
        bits = self.bits if rng.randrange(8) else 96 - self.bits
        if (number, registers[0]) in RARE and rng.randrange(10):
            registers[0] += 1
        layout = STRUCTURES.get(number, {}).get(registers[0])
        if layout is not None and rng.randrange(5):
            registers[2 if number == nr.VCPU_OP else 1] = self.filled(layout, bits)
        if number == nr.VCPU_OP and registers[0] == vcpu.INITIALISE:
            registers[2] = self.context()
        if number == nr.MULTICALL:
            registers[:2] = [self.filled(nr.MULTICALL_ENTRY, bits), rng.randrange(4)]
        return rng.randrange(len(self.domain.vcpus)), number, tuple(registers), bits

    def bind(self) -> None:
        with contextlib.suppress(XenError):
            self.backends.append(self.domain.evtchn.bind_backend(self.rng.randrange(12), lambda: None))

    def notify(self) -> None:
        if self.backends:
            backend = self.rng.choice(self.backends)
            backend.close() if self.rng.randrange(20) == 0 else backend.notify()

    def scribble(self) -> None:
        """Over a page that Xen may be using, or anywhere."""
        pages = [self.domain.shared_info.gfn, *(frame.gfn for frame in self.domain.grants.all_frames())]
        fifo = self.domain.evtchn.fifo
        if fifo is not None:
            pages += [*fifo.array_gfns, *(block.gfn for block in fifo.blocks if block is not None)]
        gfn = self.rng.choice(pages)
        if gfn is None or not self.rng.randrange(3):
            gfn = PAGES + self.rng.randrange(64)
        if gfn * PAGE < SIZE:
            self.memory.write(gfn * PAGE + self.rng.randrange(PAGE - 32), self.rng.randbytes(32))

    def grant(self) -> None:
        """An entry that may be right for a back end or for the guest itself."""
        rng, table = self.rng, self.domain.grants
        page, ref = table.frames[0].page, rng.randrange(12)
        flags = rng.choice((1, 1, 5, 0x101, rng.getrandbits(9)))
        gfn = PAGES + rng.randrange(64)
        if table.version == 1:
            page.u32[2 * ref + 1] = gfn
            page.u32[2 * ref] = flags | rng.choice((0, 7)) << 16
        else:
            page.u32[4 * ref + 1] = rng.getrandbits(32)
            page.u64[2 * ref + 1] = gfn
            page.u32[4 * ref] = flags | rng.choice((0, 7)) << 16

    def use_grant(self) -> None:
        ref = self.rng.randrange(12)
        with contextlib.suppress(GrantError):
            self.domain.grants.map(ref, write=bool(self.rng.randrange(2)))[:1] = b"!"
            if self.rng.randrange(4):
                self.domain.grants.unmap(ref)

    def pass_time(self) -> None:
        self.machine.now += self.rng.getrandbits(34)
        self.domain.timer_expired(self.rng.randrange(len(self.domain.vcpus)))


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_hostile_guest_hurts_only_itself(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyxen.hypervisor.vcpu._POLL_SLICE_S", 0.0)
    rng = random.Random(seed)
    succeeded = 0
    for step in range(CALLS):
        if step % LIFETIME == 0:
            guest = Hostile(rng)
        caller, number, registers, bits = guest.attack()
        call = f"seed {seed}, step {step}: hypercall {number} {[hex(value) for value in registers]}, {bits} bits"
        try:
            result = guest.domain.hypercall(caller, number, registers, bits)
            if rng.randrange(4) == 0:
                rng.choice(guest.actions)()
        except Exception as error:
            raise AssertionError(call) from error
        assert -200 < result < 1 << 32, call
        succeeded += result >= 0
        if step % LIFETIME == LIFETIME - 1:
            assert guest.guarded[:GUARD] == guest.guarded[-GUARD:] == CANARY * GUARD, call
    assert succeeded > CALLS // 20, "an attack that never gets in proves nothing"

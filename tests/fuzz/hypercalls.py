"""A hostile guest: calls with whatever arguments, in whatever order, while it scribbles over all of its memory.

Its memory lies between two guards. Some pages of it are named in no call; and of all others, only those may change
that the guest has written itself, has pointed to, or has given to Xen.
"""

from __future__ import annotations

import contextlib
import mmap
import random
import struct
from collections import Counter
from collections.abc import Callable
from typing import Any

from pyxen.abi import event_channel, grant_table, hvm, memory, sched, vcpu
from pyxen.abi import hypercall as nr
from pyxen.abi.errno import XenError
from pyxen.abi.grant_table import GrantError
from pyxen.abi.layout import Layout
from pyxen.abi.shared_info import DOMID_SELF
from pyxen.hypervisor import vcpu as vcpu_module
from pyxen.hypervisor.evtchn import BackendPort
from pyxen.hypervisor.hypercalls import TABLE
from pyxen.hypervisor.kvm.uapi import SREGS_CR0, SREGS_SIZE
from pyxen.hypervisor.paging import walk
from tests.unit.hypervisor.hypercalls.registers import FLAT, LONG_MODE
from tests.unit.hypervisor.hypercalls.scripted import NOWHERE, OUTSIDE, PAGE, PAGES, SCRATCH, SIZE, ScriptedGuest

CANARY = b"\xc5"
GUARD = 16 * PAGE
TABLES = 0x300000
"""Where the guest's page tables lie, in episodes that have them."""
SECRET = range(0x3C0, 0x3E0)
"""Frames that no call names."""
_NEAR = range(0x380000, 0x3E0000)
"""Addresses from which a long list may reach those."""
_HALVES = range(0x38, 0x3E)
"""Upper halves of such addresses."""
_LAST_64 = (1 << 64) - 1

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


class HostileGuest(ScriptedGuest):
    """Makes up calls; ``paged``: its pointers go through page tables of its own, which it changes too."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__(vcpus=rng.choice((1, 3, 34)), bits=rng.choice((64, 32)))
        self.rng = rng
        self.outcomes: Counter[str] = Counter()
        self.paged = rng.randrange(3) == 0
        self._guarded = mmap.mmap(-1, SIZE + 2 * GUARD)
        self._guarded[:GUARD] = self._guarded[-GUARD:] = CANARY * GUARD
        self.memory.remove(self.memory.regions[0])
        self.memory.add(0, memoryview(self._guarded)[GUARD : GUARD + SIZE])
        self.backends: list[BackendPort] = []
        self._actions: list[Callable[[], object]] = [
            self._bind,
            self._notify,
            self._scribble,
            self._use_grant,
            self._pass_time,
            self._grant,
            self._swap_version,
            lambda: self.domain.check_upcall(rng.randrange(len(self.domain.vcpus))),
        ]
        self.place_shared_info()
        self.machine.unmapped = {rng.randrange(SIZE // PAGE) for _ in range(8)}
        self._secret = rng.randbytes(len(SECRET) * PAGE)
        self.memory.write(SECRET.start * PAGE, self._secret)
        self._lost = False
        """The page tables have been scribbled over: pointers may lead anywhere."""
        self._sregs = bytearray(SREGS_SIZE)
        if self.paged:
            self._make_tables()
            self.machine.translate = self._translate  # type: ignore[method-assign]

    # harness.Target

    def step(self) -> int:
        caller, number, registers, bits = self._attack()
        slice_s, vcpu_module._POLL_SLICE_S = vcpu_module._POLL_SLICE_S, 0.0
        try:
            result = self.domain.hypercall(caller, number, registers, bits)
            if self.rng.randrange(4) == 0:
                self.rng.choice(self._actions)()
        except Exception as error:
            error.add_note(f"hypercall {number} {[hex(value) for value in registers]}, {bits} bits")
            raise
        finally:
            vcpu_module._POLL_SLICE_S = slice_s
        assert -200 < result < 1 << 32, f"hypercall {number} answers {result}"
        self.outcomes["done" if result >= 0 else f"-{-result}"] += 1
        return 1

    def check(self) -> None:
        assert self._guarded[:GUARD] == self._guarded[-GUARD:] == CANARY * GUARD, (
            "memory around the guest's has changed"
        )
        secret = self.memory.view(SECRET.start * PAGE, len(self._secret))
        assert self._lost or secret == self._secret, "memory that the guest did not point to has changed"

    def close(self) -> None:
        pass

    # Its page tables

    def _make_tables(self) -> None:
        """Map all of memory one to one: by 4 levels, by PAE's 3 or by 2, with a large page here and there."""
        rng = self.rng
        entries = [frame * PAGE | 3 for frame in range(SIZE // PAGE)]
        for _ in range(8):
            entries[rng.randrange(len(entries))] = rng.choice(
                (0, 1, rng.getrandbits(64), 3 | rng.getrandbits(40) << 12)
            )
        if self.bits == 64 or rng.randrange(2):
            self.memory.write(TABLES + 0x3000, struct.pack(f"<{len(entries)}Q", *entries))
            middle = [TABLES + 0x3000 + PAGE * index | 3 for index in range(len(entries) // 512)]
            self.memory.write(TABLES + 0x2000, struct.pack(f"<{len(middle)}Q", *middle))
            self.memory.put_u64(TABLES + 0x1000, TABLES + 0x2000 | 3)
            self.memory.put_u64(TABLES, TABLES + 0x1000 | 3)
            long_mode = self.bits == 64
            controls = (0x80000001, 0, TABLES if long_mode else TABLES + 0x1000, 0x20, 0, 0x500 if long_mode else 0)
        else:
            self.memory.write(TABLES + 0x1000, struct.pack(f"<{len(entries)}I", *(e & 0xFFFFFFFF for e in entries)))
            self.memory.put_u32(TABLES, TABLES + 0x1000 | 3)
            controls = (0x80000001, 0, TABLES, 0x10, 0, 0)
        struct.pack_into("<6Q", self._sregs, SREGS_CR0, *controls)

    def _translate(self, vcpu: int, address: int, *, write: bool) -> int:
        return walk(self.memory, memoryview(self._sregs), address, write=write)

    # What it calls

    def _number(self) -> int:
        """One that is likely to mean something, or to be at an edge; none that leads to the secret."""
        return _harmless(self._any_number())

    def _any_number(self) -> int:
        rng = self.rng
        kind = rng.randrange(14)
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
            return rng.choice((1 << 31, (1 << 31) - 1, (1 << 32) - 1, 1 << 63, _LAST_64, NOWHERE, SIZE - 1, SIZE))
        if kind == 10:  # the end of a page, of memory, of all addresses; those that aren't canonical
            return rng.choice((SCRATCH + PAGE, SIZE, 1 << 32, 1 << 47, 1 << 64, _LAST_64 - (1 << 47))) - rng.randrange(
                64
            )
        if kind == 11:  # right in its low half, with something above
            return self._number() & 0xFFFFFFFF | rng.getrandbits(32) << 32
        return rng.getrandbits(rng.choice((8, 16, 32, 64)))

    def _place(self) -> int:
        """An address for a structure: now and then one where it straddles pages."""
        if self.rng.randrange(8) == 0:
            return SCRATCH + PAGE * self.rng.randrange(1, 16) - self.rng.randrange(1, 64)
        return SCRATCH + 8 * self.rng.randrange(0x2000)

    def _structure(self) -> int:
        """Some numbers in a row, of whatever widths; their address."""
        rng = self.rng
        width = rng.choice((2, 4, 4, 8, 8))
        fields = [_harmless(self._number() & (1 << 8 * width) - 1) for _ in range(rng.randrange(1, 16))]
        if rng.randrange(2):
            fields[0] = DOMID_SELF
        return self._put(b"".join(field.to_bytes(width, "little") for field in fields))

    def _put(self, data: bytes | bytearray) -> int:
        address = self._place()
        self.memory.write(address, data)
        return address

    def _sensible(self, name: str) -> int:
        """A value that the field of this name may well have."""
        rng = self.rng
        if name in ("dom", "domid", "remote_dom", "source_domid", "dest_domid"):
            return rng.choice((DOMID_SELF, DOMID_SELF, 0, 7))
        if name.endswith(("gfn", "gpfn", "mfn", "pfn")) or name in ("source", "dest"):
            return rng.choice((PAGES + rng.randrange(64), OUTSIDE + rng.randrange(4), rng.randrange(12), self._xens()))
        if name == "idx":
            return rng.randrange(8) | rng.choice((0, 0, memory.GRANT_STATUS_FRAME))
        if name in ("vcpu", "version", "reason", "id", "space"):
            return rng.randrange(4)
        if name == "nr_extents":
            return rng.choice((1, 4, 100, 1 << 31, (1 << 32) - 1, rng.getrandbits(12)))
        if name in ("offset", "source_offset", "dest_offset"):
            return 8 * rng.randrange(512)
        if name == "address" or name.endswith(("_list", "s", "_start", "buffer")):
            return rng.choice((SCRATCH, PAGES * PAGE)) + 4 * rng.randrange(0x2000)
        return rng.randrange(12)

    def _xens(self) -> int:
        """A frame that Xen is using."""
        return self.rng.choice(self._xens_frames()) or 0

    def _xens_frames(self) -> list[int | None]:
        domain = self.domain
        frames = [domain.shared_info.gfn, *(frame.gfn for frame in domain.grants.all_frames())]
        fifo = domain.evtchn.fifo
        if fifo is not None:
            frames += [*fifo.array_gfns, *(block.gfn for block in fifo.blocks if block is not None)]
        return frames

    def _filled(self, layout: Layout[Any], bits: int) -> int:
        """A structure in which only a field or two are odd; its address."""
        rng = self.rng
        data = bytearray(rng.randbytes(layout.size(bits)))
        for name in layout.names:
            width = layout.width(bits, name)
            value = self._number() if rng.randrange(8) == 0 else self._sensible(name)
            at = layout.offset(bits, name)
            data[at : at + width] = _harmless(value & (1 << 8 * width) - 1).to_bytes(width, "little")
        return self._put(data)

    def _context(self) -> int:
        """Registers for a VCPU, right but for one byte; the address."""
        rng = self.rng
        mode, layout, value = rng.choice(((0, vcpu.CONTEXT_32, FLAT), (1, vcpu.CONTEXT_64, LONG_MODE)))
        data = bytearray(mode.to_bytes(8, "little") + layout.pack(value, 64)).ljust(vcpu.CONTEXT_SIZE, b"\0")
        if rng.randrange(2):
            data[rng.randrange(len(data))] = rng.getrandbits(8)
        return self._put(data)

    def _multicall(self, bits: int) -> tuple[int, int]:
        """A list of calls, of which some are multicalls again."""
        rng = self.rng
        word = bits // 8
        entries = b""
        count = rng.choice((0, 1, 2, 4, 8))
        for _ in range(count):
            _, number, registers, _ = self._attack(nested=True)
            fields = (rng.choice((number, number, nr.MULTICALL)), 0xDEAD, *registers)
            entries += b"".join(_harmless(field & (1 << bits) - 1).to_bytes(word, "little") for field in fields)
        return self._put(entries), rng.choice((count, count, count, 1 << 31, rng.getrandbits(11)))

    def _attack(self, *, nested: bool = False) -> tuple[int, int, tuple[int, ...], int]:
        """VCPU, number, registers and mode of one call."""
        rng = self.rng
        number = rng.choice(list(COMMANDS)) if rng.randrange(10) else rng.choice([*TABLE, rng.getrandbits(32)])
        registers = [self._structure() if rng.randrange(3) else self._number() for _ in range(6)]
        if number in COMMANDS and rng.randrange(10):
            registers[0] = rng.randrange(COMMANDS[number])
        if number == nr.GRANT_TABLE_OP and rng.randrange(4):
            registers[2] = rng.choice((1, 1, 1, 2, 5))
        if number == nr.VCPU_OP and rng.randrange(4):
            registers[1] = rng.randrange(len(self.domain.vcpus))
            registers[2] = self._structure()
        bits = self.bits if rng.randrange(8) else 96 - self.bits
        if (number, registers[0]) in RARE and rng.randrange(10):
            registers[0] += 1
        layout = STRUCTURES.get(number, {}).get(registers[0])
        if layout is not None and rng.randrange(5):
            registers[2 if number == nr.VCPU_OP else 1] = self._filled(layout, bits)
        if number == nr.VCPU_OP and registers[0] == vcpu.INITIALISE:
            registers[2] = self._context()
        if number == nr.MULTICALL and not nested:
            registers[:2] = self._multicall(bits)
        if rng.randrange(16) == 0:  # a 32-bit caller's upper halves mean nothing
            registers = [value | rng.getrandbits(32) << 32 for value in registers]
        return rng.randrange(len(self.domain.vcpus)), number, tuple(registers), bits

    # What goes on meanwhile

    def _bind(self) -> None:
        with contextlib.suppress(XenError):
            self.backends.append(self.domain.evtchn.bind_backend(self.rng.randrange(12), lambda: None))

    def _notify(self) -> None:
        if self.backends:
            backend = self.rng.choice(self.backends)
            backend.close() if self.rng.randrange(20) == 0 else backend.notify()

    def _scribble(self) -> None:
        """Over a page that Xen may be using, over its page tables, or anywhere."""
        gfn = self.rng.choice(self._xens_frames())
        if gfn is None or not self.rng.randrange(3):
            gfn = PAGES + self.rng.randrange(64)
        if self.paged and self.rng.randrange(30) == 0:
            gfn = TABLES // PAGE + self.rng.randrange(6)
            self._lost = True
        if gfn * PAGE < SIZE:
            self.memory.write(gfn * PAGE + self.rng.randrange(PAGE - 32), self.rng.randbytes(32))

    def _grant(self) -> None:
        """An entry that may be right for a back end or for the guest itself."""
        rng, table = self.rng, self.domain.grants
        page, ref = table.frames[0].page, rng.randrange(12)
        flags = rng.choice((1, 1, 5, 0x101, rng.getrandbits(9)))
        gfn = rng.choice((PAGES + rng.randrange(64), self._xens()))
        if table.version == 1:
            page.u32[2 * ref + 1] = gfn & 0xFFFFFFFF
            page.u32[2 * ref] = flags | rng.choice((0, 7)) << 16
        else:
            page.u32[4 * ref + 1] = rng.getrandbits(32)
            page.u64[2 * ref + 1] = gfn
            page.u32[4 * ref] = flags | rng.choice((0, 7)) << 16

    def _use_grant(self) -> None:
        """As a back end."""
        ref = self.rng.randrange(12)
        with contextlib.suppress(GrantError):
            self.domain.grants.map(ref, write=bool(self.rng.randrange(2)))[:1] = b"!"
            if self.rng.randrange(4):
                self.domain.grants.unmap(ref)

    def _swap_version(self) -> None:
        if self.rng.randrange(10) == 0:
            address = self._put((1 + self.rng.randrange(2)).to_bytes(4, "little"))
            self.domain.hypercall(0, nr.GRANT_TABLE_OP, (grant_table.SET_VERSION, address, 1, 0, 0, 0), self.bits)

    def _pass_time(self) -> None:
        self.machine.now += self.rng.getrandbits(34)
        self.domain.timer_expired(self.rng.randrange(len(self.domain.vcpus)))


def _harmless(value: int) -> int:
    low = value & 0xFFFFFFFF
    return (
        value ^ 0x200000
        if low in _NEAR
        else value ^ 0x200
        if low in SECRET
        else value ^ 0x20
        if low in _HALVES
        else value
    )

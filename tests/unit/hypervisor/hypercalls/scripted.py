"""A guest made of plain Python: it writes structures into its memory and makes hypercalls.

Its virtual addresses are its physical ones. Layout of its 4 MiB: structures for calls from ``SCRATCH`` on, pages to
give to Xen from ``PAGES`` on.
"""

from __future__ import annotations

import itertools
import mmap
from typing import Any, TypeVar

from pyxen.abi import hypercall as nr
from pyxen.abi.layout import Layout
from pyxen.abi.memory import ADD_TO_PHYSMAP, ADD_TO_PHYSMAP_ARG, SPACE_SHARED_INFO, AddToPhysmap
from pyxen.abi.shared_info import DOMID_SELF
from pyxen.abi.vcpu import VcpuContext
from pyxen.hypervisor.domain import Domain
from pyxen.hypervisor.machine import PvClock
from pyxen.hypervisor.memory import BadAddress, GuestMemory

PAGE = 4096
SIZE = 4 << 20
SCRATCH = 0x10000
PAGES = 0x200
"""The first frame that tests give to Xen."""
OUTSIDE = 0x100000
"""A frame outside of RAM, where the machine can still put a page."""
NOWHERE = 0x7FFFFFFFF000
"""An address that isn't mapped."""
DOMID = 7

T = TypeVar("T", bound="tuple[Any, ...]")


class FakeMachine:
    """Remembers what it was told. Time stands still unless a test moves it."""

    def __init__(self, memory: GuestMemory, vcpus: int) -> None:
        self.memory = memory
        self.now = 1_000_000
        self.upcalls: list[tuple[int, int]] = []
        self.injected: list[tuple[int, int]] = []
        self.deadlines: list[int | None] = [None] * vcpus
        self.released: list[int] = []
        self.up = [vcpu == 0 for vcpu in range(vcpus)]
        self.contexts: dict[int, VcpuContext | None] = {}
        self.nmis: list[int] = []
        self.output = b""
        self.reason: int | None = None
        self.unmapped: set[int] = set()
        self.read_only: set[int] = set()
        """Frames that the guest's page tables show for reading only."""

    def upcall(self, vcpu: int, vector: int) -> None:
        self.upcalls.append((vcpu, vector))

    def inject(self, vcpu: int, vector: int) -> None:
        self.injected.append((vcpu, vector))

    def translate(self, vcpu: int, address: int, *, write: bool) -> int:
        frame = address // PAGE
        if address >= SIZE or frame in self.unmapped or (write and frame in self.read_only):
            raise BadAddress(address, 1)
        return address

    def map_frame(self, gfn: int) -> None:
        if gfn * PAGE < SIZE:
            return
        if not OUTSIDE <= gfn < OUTSIDE + 0x1000:
            raise BadAddress(gfn * PAGE, PAGE)
        if not any(region.start == gfn * PAGE for region in self.memory.regions):
            self.memory.add(gfn * PAGE, mmap.mmap(-1, PAGE))

    def release(self, gfn: int) -> None:
        self.released.append(gfn)

    def now_ns(self) -> int:
        return self.now

    def wallclock_ns(self) -> int:
        return 1_700_000_000_123_456_789

    def pvclock(self, vcpu: int) -> PvClock:
        return PvClock(1000 + vcpu, self.now, 0x80000000, -1, 1)

    def set_timer(self, vcpu: int, deadline_ns: int | None) -> None:
        self.deadlines[vcpu] = deadline_ns

    def vcpu_up(self, vcpu: int, context: VcpuContext | None) -> None:
        self.up[vcpu] = True
        self.contexts[vcpu] = context

    def vcpu_down(self, vcpu: int) -> None:
        self.up[vcpu] = False

    def vcpu_is_up(self, vcpu: int) -> bool:
        return self.up[vcpu]

    def nmi(self, vcpu: int) -> None:
        self.nmis.append(vcpu)

    def console_write(self, data: bytes) -> None:
        self.output += data

    def shutdown(self, reason: int) -> None:
        self.reason = reason


class ScriptedGuest:
    """A domain of 4 MiB and its guest."""

    def __init__(self, vcpus: int = 2, bits: int = 64) -> None:
        self.bits = bits
        self.memory = GuestMemory.anonymous(SIZE)
        self.machine = FakeMachine(self.memory, vcpus)
        self.domain = Domain(
            self.memory,
            self.machine,
            domid=DOMID,
            vcpus=vcpus,
            memory_map=[(0, 0xA0000, 1), (0xA0000, 0x60000, 2), (0x100000, SIZE - 0x100000, 1)],
            uuid=bytes(range(16)),
        )
        self._addresses = itertools.cycle(range(SCRATCH, SCRATCH + 0x40000, 0x200))
        self._pages = itertools.count(PAGES)

    def page(self) -> int:
        """A frame that no test has used yet."""
        return next(self._pages)

    def store(self, data: bytes) -> int:
        """Put ``data`` (up to 512 bytes) somewhere; its address."""
        address = next(self._addresses)
        self.memory.write(address, data)
        return address

    def call(self, number: int, *args: int, vcpu: int = 0) -> int:
        """Make a hypercall with these registers."""
        registers = (*args, *[0xDEAD] * (6 - len(args)))
        return self.domain.hypercall(vcpu, number, registers, self.bits)

    def op(self, number: int, cmd: int, layout: Layout[T], value: T, *rest: int, vcpu: int = 0) -> tuple[int, T]:
        """(cmd, pointer to ``value``, rest); the answer and the structure afterwards."""
        address = self.store(layout.pack(value, self.bits))
        result = self.call(number, cmd, address, *rest, vcpu=vcpu)
        return result, layout.unpack(self.memory.view(address, layout.size(self.bits)), self.bits)

    def vcpu_op(self, cmd: int, target: int, layout: Layout[T], value: T, vcpu: int = 0) -> int:
        """(cmd, target, pointer to ``value``)."""
        return self.call(nr.VCPU_OP, cmd, target, self.store(layout.pack(value, self.bits)), vcpu=vcpu)

    def place_shared_info(self) -> int:
        """Have shared_info in the guest's memory; its address."""
        gfn = self.page()
        value = AddToPhysmap(DOMID_SELF, 0, SPACE_SHARED_INFO, 0, gfn)
        assert self.op(nr.MEMORY_OP, ADD_TO_PHYSMAP, ADD_TO_PHYSMAP_ARG, value)[0] == 0
        return gfn * PAGE

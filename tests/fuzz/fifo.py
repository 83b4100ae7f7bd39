"""FIFO event channels whose words, control blocks and places the guest writes over all the time."""

from __future__ import annotations

import mmap
import random
from collections import Counter

from pyxen.abi import event_channel as abi
from pyxen.abi import hypercall as nr
from pyxen.abi.errno import XenError
from pyxen.abi.shared_info import DOMID_SELF
from pyxen.hypervisor.evtchn import BackendPort
from tests.unit.hypervisor.hypercalls.scripted import PAGE, SIZE, ScriptedGuest

_GUARD = 16 * PAGE
_CANARY = b"\xc5" * _GUARD
_SECRET = 0x380
_PORTS = 40


class HostileFifo(ScriptedGuest):
    """A guest of four VCPUs with some ports of each kind. See harness.Target."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__(vcpus=4, bits=rng.choice((64, 32)))
        self.rng = rng
        self.outcomes: Counter[str] = Counter()
        self._guarded = mmap.mmap(-1, SIZE + 2 * _GUARD)
        self._guarded[:_GUARD] = self._guarded[-_GUARD:] = _CANARY
        self.memory.remove(self.memory.regions[0])
        self.memory.add(0, memoryview(self._guarded)[_GUARD : _GUARD + SIZE])
        self._secret = rng.randbytes(64) * (32 * PAGE // 64)
        self.memory.write(_SECRET * PAGE, self._secret)
        self.place_shared_info()
        self._backends: list[BackendPort] = []
        self._frames: list[int] = []
        for vcpu in range(rng.choice((1, 4))):
            self._control_block(vcpu)
        for _ in range(rng.choice((0, 1, 1, 3))):
            self._expand()
        with self.domain.lock:
            for _ in range(_PORTS):
                self._open()

    def step(self) -> int:
        rng = self.rng
        kind = rng.randrange(20)
        evtchn = self.domain.evtchn
        if kind < 6:
            self._scribble()
        try:
            with self.domain.lock:
                if kind < 10:
                    evtchn.send(rng.randrange(_PORTS))
                elif kind < 13 and self._backends:
                    rng.choice(self._backends).notify()
                elif kind < 15:
                    evtchn.unmask(rng.randrange(_PORTS + 4))
                elif kind == 15:
                    evtchn.set_priority(rng.randrange(_PORTS), rng.choice((0, 7, 15, 16, 1 << 31)))
                elif kind == 16:
                    evtchn.bind_vcpu(rng.randrange(_PORTS), rng.randrange(5))
                elif kind == 17:
                    evtchn.close(rng.randrange(_PORTS))
                    self._open()
                elif kind == 18:
                    evtchn.raise_virq(0, rng.randrange(4))
                else:
                    rng.choice((self._expand, lambda: self._control_block(rng.randrange(4)), self._reset))()
            self.outcomes["done"] += 1
        except XenError as error:
            self.outcomes[f"-{error.errno}"] += 1
        return 1

    def check(self) -> None:
        assert self._guarded[:_GUARD] == self._guarded[-_GUARD:] == _CANARY, "memory around the guest's has changed"
        assert self.memory.read(_SECRET * PAGE, len(self._secret)) == self._secret, "a page of no event's has changed"
        fifo = self.domain.evtchn.fifo
        assert fifo is None or len(fifo._last_queue) <= self.domain.evtchn.max_ports

    def close(self) -> None:
        pass

    def _frame(self) -> int:
        """A new page, or one that has a use already."""
        if self._frames and self.rng.randrange(8) == 0:
            return self.rng.choice((*self._frames, self.domain.shared_info.gfn or 0))
        self._frames.append(self.page() if self.rng.randrange(20) and len(self._frames) < 200 else 1 << 31)
        return self._frames[-1]

    def _control_block(self, vcpu: int) -> None:
        offset = self.rng.choice((0, 64, PAGE - abi.FIFO_CONTROL_SIZE, PAGE - 8, 4))
        value = abi.InitControl(self._frame(), offset, vcpu, 0, bytes(7))
        self.op(nr.EVENT_CHANNEL_OP, abi.INIT_CONTROL, abi.INIT_CONTROL_ARG, value)

    def _expand(self) -> None:
        self.op(nr.EVENT_CHANNEL_OP, abi.EXPAND_ARRAY, abi.EXPAND_ARRAY_ARG, abi.ExpandArray(self._frame()))

    def _open(self) -> None:
        evtchn, kind = self.domain.evtchn, self.rng.randrange(4)
        try:
            if kind == 0:
                evtchn.bind_ipi(self.rng.randrange(4))
            elif kind == 1:
                self._backends.append(evtchn.bind_backend(evtchn.alloc_unbound(), lambda: None))
                del self._backends[:-50]
            elif kind == 2:
                evtchn.bind_interdomain(self.domain.domid, evtchn.alloc_unbound(self.domain.domid))
            else:
                evtchn.bind_virq(0, self.rng.randrange(4))
        except XenError as error:
            self.outcomes[f"-{error.errno}"] += 1

    def _reset(self) -> None:
        if self.rng.randrange(30) == 0:
            self.op(nr.EVENT_CHANNEL_OP, abi.RESET, abi.RESET_ARG, abi.Reset(DOMID_SELF))
            self._control_block(0)
            self._expand()

    def _scribble(self) -> None:
        """Over a word that is in use: links to anywhere, MASKED, BUSY, LINKED and PENDING as they come."""
        rng = self.rng
        if not self._frames:
            return
        gfn = rng.choice(self._frames)
        if gfn * PAGE < SIZE:
            word = rng.choice((rng.getrandbits(32), rng.getrandbits(4) << 28 | rng.randrange(_PORTS), 0, 0xFFFFFFFF))
            self.memory.put_u32(gfn * PAGE + 4 * rng.choice((rng.randrange(_PORTS), rng.randrange(1024))), word)

"""A scripted guest: memory, grants and event channels without a hypervisor, and the store beside them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from pyxen.abi.errno import EINVAL, XenError
from pyxen.backend.guest import GrantError
from pyxen.hypervisor.memory import BadAddress, GuestMemory
from pyxen.xenstore.local import Local
from pyxen.xenstore.store import Store
from tests.unit.xenstore.talk import Party

PAGE = 4096
PATIENCE_S = 30.0


class FakeGrants:
    """References to pages; ``mapped`` counts what back ends hold."""

    def __init__(self, memory: GuestMemory) -> None:
        self.memory = memory
        self.entries: dict[int, tuple[int, bool]] = {}
        self.mapped: dict[int, int] = {}
        self.maps = 0

    def map(self, ref: int, *, write: bool) -> memoryview:
        if ref not in self.entries or (write and self.entries[ref][1]):
            raise GrantError(ref, -3, "not granted")
        gfn, _ = self.entries[ref]
        try:
            view = self.memory.view(gfn * PAGE, PAGE)
        except BadAddress as error:
            raise GrantError(ref, -9, "no memory") from error
        self.mapped[ref] = self.mapped.get(ref, 0) + 1
        self.maps += 1
        return view

    def unmap(self, ref: int) -> None:
        if not self.mapped.get(ref):
            raise GrantError(ref, -3, "not in use")
        self.mapped[ref] -= 1
        if not self.mapped[ref]:
            del self.mapped[ref]


class FakePort:
    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback = callback
        self.notified = 0
        self.closed = False

    def notify(self) -> None:
        self.notified += 1

    def close(self) -> None:
        self.closed = True


class FakeEvtchn:
    def __init__(self) -> None:
        self.offered: set[int] = set()
        self.bound: dict[int, FakePort] = {}

    def bind_backend(self, port: int, callback: Callable[[], None]) -> FakePort:
        if port not in self.offered:
            raise XenError(EINVAL, f"port {port}")
        self.bound[port] = FakePort(callback)
        callback()
        return self.bound[port]


class ScriptedGuest:
    """Domain 1 with 2 MiB; pages are handed out from the bottom."""

    domid = 1

    def __init__(self) -> None:
        self.memory = GuestMemory.anonymous(512 * PAGE)
        self.grants = FakeGrants(self.memory)
        self.evtchn = FakeEvtchn()
        self.store = Store()
        self.local = Local(self.store)
        self.xenstore = Party(self.store, 1)
        self.local.write_all({}, {"/local/domain/1": ["n0", "r1"]})
        self._pages = 0
        self._ports = 0
        self._soon: deque[Callable[[], None]] = deque()

    def page(self, *, readonly: bool = False) -> tuple[int, memoryview]:
        """A page of memory with a grant reference for it."""
        gfn = self._pages
        self._pages += 1
        ref = 8 + gfn
        self.grants.entries[ref] = (gfn, readonly)
        return ref, self.memory.view(gfn * PAGE, PAGE)

    def port(self) -> int:
        self._ports += 1
        self.evtchn.offered.add(self._ports)
        return self._ports

    def call_soon(self, callback: Callable[[], None]) -> None:
        self._soon.append(callback)

    def run_loop(self) -> None:
        while self._soon:
            self._soon.popleft()()
        self.local.settle()

    def write(self, path: str, value: str | int) -> None:
        """As the guest, below its home."""
        self.xenstore.write(path, str(value).encode())
        self.local.settle()

    def wait(self, condition: Callable[[], bool]) -> None:
        """Other threads work meanwhile; fails after a time that only a hang takes."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, "nothing happened"
            self.run_loop()
            time.sleep(0.0005)


class FrontRing:
    """The guest's side of a shared ring."""

    def __init__(self, pages: list[memoryview], entry: int, response: int, size: int) -> None:
        self.pages = pages
        self.entry = entry
        self.response = response
        self.size = size
        self.words = pages[0].cast("I")
        self.prod = 0
        self.cons = 0
        self.words[1] = self.words[3] = 1

    def put(self, data: bytes) -> None:
        """Write a request; ``push`` shows it."""
        self._store(64 + (self.prod % self.size) * self.entry, data)
        self.prod += 1

    def push(self) -> None:
        self.words[0] = self.prod & 0xFFFFFFFF

    def waiting(self) -> int:
        return (self.words[2] - self.cons) & 0xFFFFFFFF

    def fetch(self) -> bytes:
        start = 64 + (self.cons % self.size) * self.entry
        self.cons += 1
        self.words[3] = (self.cons + 1) & 0xFFFFFFFF
        return bytes(self._byte(start + index) for index in range(self.response))

    def _byte(self, offset: int) -> int:
        return self.pages[offset // PAGE][offset % PAGE]

    def _store(self, start: int, data: bytes) -> None:
        for index, byte in enumerate(data):
            self.pages[(start + index) // PAGE][(start + index) % PAGE] = byte

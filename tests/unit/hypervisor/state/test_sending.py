"""Memory sent while the guest still writes: what arrives is what there was at the end, whoever wrote it."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyxen.abi import event_channel, sched
from pyxen.abi import hypercall as nr
from pyxen.abi.shared_info import DOMID_SELF
from pyxen.errors import Conflict
from pyxen.hypervisor.domain import Domain
from pyxen.hypervisor.memory import PAGE_SIZE, GuestMemory, Region
from pyxen.hypervisor.state import load, ram, save, sending
from pyxen.hypervisor.state.sending import Pace, Sending
from tests.fuzz.hypercalls import HostileGuest
from tests.unit.hypervisor.hypercalls.scripted import OUTSIDE, FakeMachine, ScriptedGuest
from tests.unit.hypervisor.state.test_state import _cpu as make_cpu

_PAGES = 512


class Writing:
    """A machine whose guest writes: ``each`` is called whenever somebody asks what it has written."""

    tsc_khz = 2_000_000

    def __init__(self, memory: GuestMemory, each: Callable[[Writing], None] = lambda machine: None) -> None:
        self.memory = memory
        self.logging = 0
        self.shares: list[float] = []
        self._each = each
        self._dirty: dict[int, int] = {}

    def write(self, gpa: int, data: bytes) -> None:
        """As guest code does: not by way of GuestMemory."""
        region = self.memory.find(gpa, len(data))
        offset = gpa - region.start
        region.data[offset : offset + len(data)] = data
        for page in range(offset // PAGE_SIZE, (offset + len(data) - 1) // PAGE_SIZE + 1):
            self._dirty[region.start] = self._dirty.get(region.start, 0) | 1 << page

    def log_writes(self, region: Region, on: bool) -> None:
        self.logging += 1 if on else -1

    def written(self, region: Region) -> int:
        assert self.logging
        self._each(self)
        return self._dirty.pop(region.start, 0)

    def throttle(self, share: float) -> None:
        self.shares.append(share)


def _domain() -> Domain:
    memory = GuestMemory.anonymous(_PAGES * PAGE_SIZE)
    return Domain(
        memory, FakeMachine(memory, 1), domid=7, vcpus=1, memory_map=[(0, _PAGES * PAGE_SIZE, 1)]
    )  # fmt: skip


def _received(run: Callable[[int], None], domain: Domain) -> None:
    """Have ``domain`` be what ``run`` writes into a descriptor."""
    out, into = os.pipe()

    def write() -> None:
        try:
            run(into)
        finally:
            os.close(into)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        load.read(out, domain, lambda khz: None)
    finally:
        os.close(out)
        thread.join()


def _end(sent: Sending, domain: Domain) -> None:
    sent.finish(save.describe(domain, 1, 2), [make_cpu(0)])


def test_what_arrives_is_what_there_was_at_the_end() -> None:
    rng, domain, there = random.Random(5), _domain(), _domain()
    for page in range(0, _PAGES, 3):
        domain.memory.write(page * PAGE_SIZE, rng.randbytes(PAGE_SIZE))
    rounds = iter(range(6))

    def writes(machine: Writing) -> None:
        if next(rounds, None) is not None:
            for _ in range(20):
                machine.write(rng.randrange(_PAGES * PAGE_SIZE - 9000), rng.randbytes(rng.randrange(1, 9000)))
            machine.write(rng.randrange(_PAGES) * PAGE_SIZE, bytes(PAGE_SIZE))

    machine = Writing(domain.memory, writes)

    def run(fd: int) -> None:
        sent = Sending(fd, domain, machine, Pace(downtime_ms=0))
        sent.rounds()
        machine.write(17 * PAGE_SIZE, b"at the very end")
        domain.memory.write(18 * PAGE_SIZE, b"by a hypercall")
        domain.machine.map_frame(OUTSIDE)
        domain.memory.write(OUTSIDE * PAGE_SIZE, b"a page of Xen's")
        _end(sent, domain)
        assert sent.round > 2
        assert sent.remaining == 0
        sent.close()

    _received(run, there)
    for mine, its in zip(domain.memory.regions, there.memory.regions, strict=True):
        assert mine.data == its.data
    assert not machine.logging


def test_kept_pages_and_granted_ones_in_use_are_sent_last() -> None:
    domain, there = _domain(), _domain()
    kept = domain.memory.keep(5 * PAGE_SIZE, 8)
    domain.grants.grant(9, 6)
    granted = domain.grants.map(9, write=True)
    domain.grants.grant(10, 7)
    given_back = domain.grants.map(10, write=True)

    def run(fd: int) -> None:
        sent = Sending(fd, domain, Writing(domain.memory))
        sent.rounds()
        kept[:] = b"by Xen's"
        granted[:4] = b"disk"
        given_back[:3] = b"net"
        domain.grants.unmap(10)
        _end(sent, domain)
        sent.close()

    _received(run, there)
    assert there.memory.read(5 * PAGE_SIZE, 8) == b"by Xen's"
    assert there.memory.read(6 * PAGE_SIZE, 4) == b"disk"
    assert there.memory.read(7 * PAGE_SIZE, 3) == b"net"


class _Hostile(HostileGuest):
    """Knows what others than itself have changed in its memory since ``look``."""

    def look(self) -> None:
        self._before = {region.start: bytearray(region.data) for region in self.memory.regions}
        self.memory.write = self._write  # type: ignore[method-assign]  # nothing but the guest writes so here

    def _write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        region = self.memory.find(gpa, len(data))
        at = gpa - region.start
        region.data[at : at + len(data)] = data
        if region.start in self._before:
            self._before[region.start][at : at + len(data)] = data

    def changed(self) -> set[int]:
        """Frames; not those that have come since."""
        return {
            (region.start + at) // PAGE_SIZE
            for region in self.memory.regions
            if (before := self._before.get(region.start)) is not None
            for at in range(0, len(before), PAGE_SIZE)
            if before[at : at + PAGE_SIZE] != region.data[at : at + PAGE_SIZE]
        }


@pytest.mark.parametrize("seed", range(12))
def test_no_page_that_xen_or_a_back_end_changes_is_missed(seed: int) -> None:
    """Whatever calls a guest makes: a page that is not what it was is in the log, kept, or in a back end's hands."""
    guest = _Hostile(random.Random(seed))
    for _ in range(300):
        guest.step()
    memory = guest.memory
    memory.note_writes(True)
    for _ in range(8):
        guest.look()
        memory.take_written()
        for _ in range(60):
            guest.step()
        missed = guest.changed() - memory.take_written() - memory.kept - guest.domain.grants.written()
        assert not missed


def test_hypercalls_that_only_read_are_no_writes() -> None:
    guest = ScriptedGuest()
    address = guest.store(event_channel.ALLOC_UNBOUND_ARG.pack(event_channel.AllocUnbound(DOMID_SELF, 0, 0), 64))
    reason = guest.store(b"\0" * 16)
    guest.memory.note_writes(True)
    guest.call(nr.SCHED_OP, sched.POLL, reason)
    assert not guest.memory.take_written()
    guest.call(nr.EVENT_CHANNEL_OP, event_channel.ALLOC_UNBOUND, address)
    assert guest.memory.take_written() == {address // PAGE_SIZE}
    guest.memory.note_writes(False)
    guest.call(nr.EVENT_CHANNEL_OP, event_channel.ALLOC_UNBOUND, address)
    assert not guest.memory.take_written()


def test_a_guest_that_writes_too_fast_is_slowed_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the point where it writes little: this one does so once it may run for less than a third of the time."""
    monkeypatch.setattr(sending, "_SHORTEST_S", 1.0)  # what is sent in a second, however fast it went
    domain = _domain()

    def writes(machine: Writing) -> None:
        if not machine.shares or machine.shares[-1] < 0.7:
            machine.write(0, b"x" * PAGE_SIZE * _PAGES)

    machine = Writing(domain.memory, writes)
    with open(os.devnull, "wb") as nowhere:
        sent = Sending(nowhere.fileno(), domain, machine, Pace(downtime_ms=1))
        sent.rounds()
        sent.close()
    shares = [round(share, 2) for share in machine.shares]
    assert shares == [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.0, 0.0], "and runs freely afterwards"


@pytest.mark.parametrize("where", ["in a write", "in a pause"])
def test_it_can_be_called_off_at_any_time(where: str) -> None:
    domain = _domain()
    domain.memory.write(0, b"x" * PAGE_SIZE * _PAGES)
    machine = Writing(domain.memory)
    out, into = os.pipe()
    pace = Pace() if where == "in a write" else Pace(bandwidth=1)
    if where == "in a pause":
        os.close(into)
        into = os.open(os.devnull, os.O_WRONLY)
    sent = Sending(into, domain, machine, pace)
    failures: list[Exception] = []

    def run() -> None:
        try:
            sent.rounds()
        except Conflict as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    while not machine.logging or (where == "in a pause" and not sent.sent):
        thread.join(0.01)
    thread.join(0.05)
    assert thread.is_alive()
    sent.stop()
    thread.join(20)
    assert not thread.is_alive()
    sent.close()
    assert "called off" in str(failures[0])
    assert not machine.logging
    for fd in (out, into):
        os.close(fd)


@given(st.sets(st.integers(0, 400)))
def test_stretches_are_the_bits(bits: set[int]) -> None:
    found = list(ram.stretches(sum(1 << bit for bit in bits)))
    assert {bit for first, end in found for bit in range(first, end)} == bits
    assert list(_flat(found)) == sorted(set(_flat(found))), "apart from each other, in order, none empty"


def _flat(pairs: list[tuple[int, int]]) -> Iterator[int]:
    for pair in pairs:
        yield from pair

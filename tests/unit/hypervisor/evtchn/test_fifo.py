"""FIFO events: a scripted guest that consumes its queues as Linux does."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pyxen.abi import errno
from pyxen.abi import event_channel as abi
from pyxen.abi.hypercall import EVENT_CHANNEL_OP
from pyxen.abi.shared_info import DOMID_SELF
from tests.unit.hypervisor.hypercalls.scripted import PAGE, ScriptedGuest

PENDING = 1 << abi.FIFO_PENDING
MASKED = 1 << abi.FIFO_MASKED
LINKED = 1 << abi.FIFO_LINKED


class FifoGuest(ScriptedGuest):
    """Has a control block for each VCPU, and can have pages of event words."""

    def __init__(self, vcpus: int = 2) -> None:
        super().__init__(vcpus)
        self.place_shared_info()
        self.blocks = [self.page() * PAGE + 72 * vcpu for vcpu in range(vcpus)]
        self.array: list[int] = []

    def init_control(self, vcpu: int, gfn: int | None = None, offset: int | None = None) -> int:
        at = self.blocks[vcpu] if vcpu < len(self.blocks) else 0
        value = abi.InitControl(
            at // PAGE if gfn is None else gfn, at % PAGE if offset is None else offset, vcpu, 0, bytes(7)
        )
        result, answer = self.op(EVENT_CHANNEL_OP, abi.INIT_CONTROL, abi.INIT_CONTROL_ARG, value)
        assert result != 0 or answer.link_bits == 17
        return result

    def expand(self, gfn: int | None = None) -> int:
        page = self.page() if gfn is None else gfn
        for word in range(1024 if gfn is None else 0):
            self.memory.put_u32(page * PAGE + 4 * word, MASKED)
        result = self.op(EVENT_CHANNEL_OP, abi.EXPAND_ARRAY, abi.EXPAND_ARRAY_ARG, abi.ExpandArray(page))[0]
        if result == 0:
            self.array.append(page * PAGE)
        return result

    def word_at(self, port: int) -> int:
        return self.array[port // 1024] + port % 1024 * 4

    def word(self, port: int) -> int:
        return self.memory.u32(self.word_at(port))

    def set_word(self, port: int, value: int) -> None:
        self.memory.put_u32(self.word_at(port), value)

    def unmask(self, port: int) -> None:
        """As Linux: by itself, and with a hypercall if the event was pending."""
        if self.word(port) & PENDING:
            assert self.op(EVENT_CHANNEL_OP, abi.UNMASK, abi.PORT_ARG, abi.Port(port))[0] == 0
        else:
            self.set_word(port, self.word(port) & ~MASKED)

    def consume(self, vcpu: int) -> list[int]:
        """Handle all that is ready, most urgent first; the ports whose events were seen."""
        seen = []
        block = self.blocks[vcpu]
        self.domain.vcpus[vcpu].info.view[self.domain.vcpus[vcpu].info_offset] = 0
        heads: dict[int, int] = {}
        ready = self.memory.u32(block)
        self.memory.put_u32(block, 0)
        while ready:
            priority = (ready & -ready).bit_length() - 1
            head = heads.get(priority) or self.memory.u32(block + 8 + 4 * priority)
            word = self.word(head)
            self.set_word(head, word & ~(LINKED | abi.FIFO_LINK_MASK))
            heads[priority] = word & abi.FIFO_LINK_MASK
            if not heads[priority]:
                ready &= ~(1 << priority)
            if word & PENDING and not word & MASKED:
                self.set_word(head, self.word(head) & ~PENDING)
                seen.append(head)
            ready |= self.memory.u32(block)
            self.memory.put_u32(block, 0)
        return seen

    def ipi(self, vcpu: int) -> int:
        result, answer = self.op(EVENT_CHANNEL_OP, abi.BIND_IPI, abi.BIND_IPI_ARG, abi.BindIpi(vcpu, 0))
        assert result == 0
        return answer.port

    def send(self, port: int) -> None:
        assert self.op(EVENT_CHANNEL_OP, abi.SEND, abi.PORT_ARG, abi.Port(port))[0] == 0

    def priority(self, port: int, priority: int) -> int:
        value = abi.SetPriority(port, priority)
        return self.op(EVENT_CHANNEL_OP, abi.SET_PRIORITY, abi.SET_PRIORITY_ARG, value)[0]


@pytest.fixture
def guest() -> FifoGuest:
    return FifoGuest()


@pytest.fixture
def ready(guest: FifoGuest) -> FifoGuest:
    """With both VCPUs' blocks and one page of words."""
    assert [guest.init_control(0), guest.init_control(1), guest.expand()] == [0, 0, 0]
    return guest


def test_a_bad_control_block_is_refused_and_nothing_changes(guest: FifoGuest) -> None:
    for vcpu, gfn, offset, expected in (
        (2, None, None, errno.ENOENT),
        (0, None, 4096 - 71, errno.EINVAL),
        (0, None, 4, errno.EINVAL),
        (0, None, 0xFFFFFFF8, errno.EINVAL),
        (0, 0x99999, 0, errno.EINVAL),
        (0, 2**64 - 1, 0, errno.EINVAL),
    ):
        assert guest.init_control(vcpu, gfn, offset) == -expected
    assert guest.expand() == -errno.EOPNOTSUPP
    assert guest.domain.evtchn.fifo is None


def test_a_vcpu_gets_one_control_block(guest: FifoGuest) -> None:
    assert guest.init_control(0) == 0
    assert guest.init_control(0) == -errno.EINVAL


def test_the_array_ends_with_the_port_numbers(ready: FifoGuest) -> None:
    assert ready.expand(0x99999) == -errno.EINVAL
    for _ in range(127):
        assert ready.expand(ready.array[0] // PAGE) == 0
    assert ready.expand(ready.array[0] // PAGE) == -errno.ENOSPC


def test_an_event_is_queued_once_and_seen_once(ready: FifoGuest) -> None:
    port = ready.ipi(1)
    ready.unmask(port)
    ready.send(port)
    assert ready.word(port) == PENDING | LINKED
    assert ready.domain.vcpus[1].upcall_pending
    ready.send(port)
    assert ready.consume(0) == []
    assert ready.consume(1) == [port]
    assert ready.word(port) == 0
    assert ready.consume(1) == []


def test_a_masked_event_waits_for_the_unmask(ready: FifoGuest) -> None:
    port = ready.ipi(0)
    ready.send(port)
    assert ready.word(port) == PENDING | MASKED
    assert ready.consume(0) == []
    ready.unmask(port)
    assert ready.consume(0) == [port]


def test_events_come_by_priority_and_then_in_order(ready: FifoGuest) -> None:
    ports = [ready.ipi(0) for _ in range(5)]
    for port, priority in zip(ports, (9, 0, 7, 0, 15), strict=True):
        assert ready.priority(port, priority) == 0
        ready.unmask(port)
        ready.send(port)
    assert ready.consume(0) == [ports[1], ports[3], ports[2], ports[0], ports[4]]


@pytest.mark.parametrize(("port", "priority", "expected"), [(1, 16, -22), (2**17, 0, -22), (1, 2**32 - 1, -22)])
def test_a_wrong_priority_is_refused(ready: FifoGuest, port: int, priority: int, expected: int) -> None:
    assert ready.ipi(0) == 1
    assert ready.priority(port, priority) == expected


def test_an_event_before_its_page_comes_with_the_page(guest: FifoGuest) -> None:
    port = guest.ipi(0)
    assert guest.init_control(0) == 0
    guest.send(port)
    assert guest.expand() == 0
    assert guest.word(port) == PENDING | MASKED
    guest.unmask(port)
    assert guest.consume(0) == [port]


def test_what_was_pending_in_two_levels_is_pending_afterwards(guest: FifoGuest) -> None:
    port = guest.ipi(0)
    guest.send(port)
    assert guest.init_control(0) == 0
    assert guest.expand() == 0
    guest.unmask(port)
    assert guest.consume(0) == [port]


def test_a_vcpu_without_a_control_block_gets_no_events(guest: FifoGuest) -> None:
    assert guest.init_control(0) == 0
    assert guest.expand() == 0
    port = guest.ipi(1)
    guest.unmask(port)
    guest.send(port)
    assert guest.word(port) == 0


def test_closing_a_port_in_a_queue_and_opening_it_again_loses_nothing(ready: FifoGuest) -> None:
    port = ready.ipi(0)
    ready.unmask(port)
    ready.send(port)
    assert ready.op(EVENT_CHANNEL_OP, abi.CLOSE, abi.PORT_ARG, abi.Port(port))[0] == 0
    assert ready.word(port) == LINKED
    assert ready.ipi(1) == port
    assert ready.consume(0) == []
    ready.send(port)
    assert ready.consume(1) == [port]


def test_a_tail_that_moves_to_another_queue_does_not_drag_the_old_one_along(ready: FifoGuest) -> None:
    first, second = ready.ipi(0), ready.ipi(0)
    for port in (first, second):
        ready.unmask(port)
    ready.send(first)
    assert ready.consume(0) == [first]
    assert ready.priority(first, 3) == 0
    ready.send(first)
    ready.send(second)
    assert ready.consume(0) == [first, second]


def test_a_reset_goes_back_to_two_levels(ready: FifoGuest) -> None:
    assert ready.op(EVENT_CHANNEL_OP, abi.RESET, abi.RESET_ARG, abi.Reset(DOMID_SELF))[0] == 0
    assert ready.domain.evtchn.fifo is None
    assert ready.init_control(0) == 0


@pytest.mark.parametrize("garbage", [0, 0xFFFFFFFF, LINKED, PENDING | LINKED | 5, abi.FIFO_LINK_MASK])
def test_garbage_in_words_hurts_only_the_guest(ready: FifoGuest, garbage: int) -> None:
    ports = [ready.ipi(vcpu) for vcpu in (0, 0, 1)]
    for port in ports:
        ready.unmask(port)
        ready.send(port)
        ready.set_word(port, garbage)
    for port in ports:
        ready.send(port)
        ready.op(EVENT_CHANNEL_OP, abi.UNMASK, abi.PORT_ARG, abi.Port(port))


class Queues(RuleBasedStateMachine):
    """Whatever the order of raising, moving, masking and consuming: every event is seen, on the right VCPU."""

    def __init__(self) -> None:
        super().__init__()
        self.guest = FifoGuest()
        assert [self.guest.init_control(0), self.guest.init_control(1), self.guest.expand()] == [0, 0, 0]
        self.ports: list[int] = []
        self.backends = {}
        self.raised: set[int] = set()
        self.masked: set[int] = set()
        for _ in range(6):
            port = self.guest.domain.evtchn.alloc_unbound()
            self.backends[port] = self.guest.domain.evtchn.bind_backend(port, lambda: None)
            self.guest.unmask(port)
            self.ports.append(port)

    @rule(index=st.integers(0, 5))
    def notify(self, index: int) -> None:
        self.backends[self.ports[index]].notify()
        self.raised.add(self.ports[index])

    @rule(index=st.integers(0, 5), vcpu=st.integers(0, 1), priority=st.integers(0, 15))
    def move(self, index: int, vcpu: int, priority: int) -> None:
        value = abi.BindVcpu(self.ports[index], vcpu)
        assert self.guest.op(EVENT_CHANNEL_OP, abi.BIND_VCPU, abi.BIND_VCPU_ARG, value)[0] == 0
        assert self.guest.priority(self.ports[index], priority) == 0

    @rule(index=st.integers(0, 5))
    def mask(self, index: int) -> None:
        port = self.ports[index]
        self.guest.set_word(port, self.guest.word(port) | MASKED)
        self.masked.add(port)

    @rule(index=st.integers(0, 5))
    def unmask(self, index: int) -> None:
        self.guest.unmask(self.ports[index])
        self.masked.discard(self.ports[index])

    @precondition(lambda self: self.raised)
    @rule()
    def consume(self) -> None:
        seen = [port for vcpu in (0, 1) for port in self.guest.consume(vcpu)]
        assert len(seen) == len(set(seen))
        assert set(seen) == self.raised - self.masked
        self.raised -= set(seen)

    @invariant()
    def whoever_has_events_is_told(self) -> None:
        for vcpu in (0, 1):
            if self.guest.memory.u32(self.guest.blocks[vcpu]):
                assert self.guest.domain.vcpus[vcpu].upcall_pending


TestQueues = Queues.TestCase
TestQueues.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)

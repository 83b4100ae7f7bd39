"""The ring page: a guest written in Python on the other end of it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pyxen.abi import xs_wire as wire
from pyxen.abi.xs_wire import HEADER, Op
from pyxen.xenstore.local import Local
from pyxen.xenstore.ring import Ring
from pyxen.xenstore.store import Store


class Guest:
    """Writes requests, reads answers, counts how often its event channel was raised."""

    def __init__(self) -> None:
        self.page = memoryview(bytearray(4096))
        self.words = self.page.cast("I")
        self.store = Store()
        self.notified = 0
        self.woken = 0
        self.ring = Ring(self.store, 1, self.page, self._notified, wake=self._woken)

    def _notified(self) -> None:
        self.notified += 1

    def _woken(self) -> None:
        self.woken += 1

    def get(self, offset: int) -> int:
        return self.words[offset // 4]

    def set(self, offset: int, value: int) -> None:
        self.words[offset // 4] = value & 0xFFFFFFFF

    def send(self, data: bytes) -> int:
        """As much as fits; how much that was."""
        produced = self.get(wire.REQ_PROD)
        room = wire.RING_SIZE - ((produced - self.get(wire.REQ_CONS)) & 0xFFFFFFFF)
        for index, byte in enumerate(data[:room]):
            self.page[(produced + index) % 1024] = byte
        self.set(wire.REQ_PROD, produced + len(data[:room]))
        return len(data[:room])

    def fetch(self, most: int = 1024) -> bytes:
        consumed = self.get(wire.RSP_CONS)
        count = min(most, (self.get(wire.RSP_PROD) - consumed) & 0xFFFFFFFF)
        data = bytes(self.page[1024 + (consumed + index) % 1024] for index in range(count))
        self.set(wire.RSP_CONS, consumed + count)
        return data

    def talk(self, data: bytes) -> bytes:
        answer = b""
        for _ in range(10_000):
            data = data[self.send(data) :]
            before = (self.get(wire.REQ_CONS), self.get(wire.RSP_PROD))
            self.ring.poll()
            answer += self.fetch()
            if not data and before == (self.get(wire.REQ_CONS), self.get(wire.RSP_PROD)):
                break
        return answer


READ = HEADER.pack(Op.READ, 9, 0, 2) + b"/\0"
REFUSED = HEADER.pack(Op.ERROR, 9, 0, 7) + b"EACCES\0"


def test_the_page_says_what_the_store_can() -> None:
    guest = Guest()
    assert guest.get(wire.SERVER_FEATURES) == 7
    assert guest.get(wire.CONNECTION) == wire.CONNECTED


def test_messages_wrap_and_are_longer_than_the_ring() -> None:
    guest = Guest()
    for offset in (wire.REQ_CONS, wire.REQ_PROD, wire.RSP_CONS, wire.RSP_PROD):
        guest.set(offset, 0xFFFFFF00)
    assert guest.talk(READ * 200) == REFUSED * 200
    assert guest.notified > 0
    long = HEADER.pack(Op.WRITE, 9, 0, 4003) + b"/a\0" + b"v" * 4000
    assert guest.talk(long + READ).endswith(REFUSED)


def test_an_event_wakes_whoever_polls() -> None:
    guest = Guest()
    path = b"/a\0t\0"
    guest.talk(HEADER.pack(Op.WATCH, 1, 0, len(path)) + path)
    assert guest.woken == 0
    local = Local(guest.store)
    local.write_all({"/a": 1}, {"/a": ["n0", "r1"]})
    assert guest.woken > 0
    guest.ring.poll()
    assert guest.fetch().endswith(path)


def test_an_impossible_index_stops_the_ring_until_it_reconnects() -> None:
    for index in (wire.REQ_PROD, wire.RSP_CONS):
        guest = Guest()
        guest.set(index, 2000)
        guest.ring.poll()
        assert guest.get(wire.ERROR) == wire.RingError.RINGIDX
        guest.set(index, 0)
        assert guest.talk(READ) == b""
        guest.set(wire.CONNECTION, wire.RECONNECT)
        guest.ring.poll()
        assert guest.get(wire.CONNECTION) == wire.CONNECTED
        assert guest.get(wire.ERROR) == wire.RingError.NONE
        assert guest.talk(READ) == REFUSED


def test_a_message_that_is_none_stops_the_ring() -> None:
    guest = Guest()
    guest.talk(HEADER.pack(Op.READ, 9, 0, 5000))
    assert guest.get(wire.ERROR) == wire.RingError.PROTO


def test_a_released_domain_is_not_answered() -> None:
    guest = Guest()
    guest.store.introduce(1)
    guest.store.release(1)
    assert guest.talk(READ) == b""


def test_a_guest_that_never_fetches_is_not_read_for_ever() -> None:
    guest = Guest()
    for _ in range(1000):
        guest.send(READ * 50)
        guest.ring.poll()
    assert len(guest.ring.connection.output) < 64 * 1024
    assert guest.get(wire.REQ_PROD) - guest.get(wire.REQ_CONS) > 0


@given(
    page=st.binary(min_size=2080, max_size=2080),
    changes=st.lists(st.tuples(st.integers(0, 519), st.integers(0, 2**32 - 1)), max_size=20),
)
def test_no_page_breaks_the_store(page: bytes, changes: list[tuple[int, int]]) -> None:
    guest = Guest()
    guest.page[: len(page)] = page
    guest.ring.poll()
    for word, value in changes:
        guest.words[word] = value
        guest.ring.poll()
    guest.set(wire.CONNECTION, wire.RECONNECT)
    guest.ring.poll()
    assert guest.talk(READ) == REFUSED

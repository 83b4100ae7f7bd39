"""The console page, with a guest on the other end."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pyxen.abi import console_ring as abi
from pyxen.backend.console import Console


class Guest:
    def __init__(self, start: int = 0) -> None:
        self.page = memoryview(bytearray(4096))
        self.words = self.page.cast("I")
        for offset in (abi.IN_CONS, abi.IN_PROD, abi.OUT_CONS, abi.OUT_PROD):
            self.words[offset // 4] = start
        self.printed = b""
        self.notified = 0
        self.console = Console(self.page, self._write, self._notify)

    def _write(self, data: bytes) -> None:
        self.printed += data

    def _notify(self) -> None:
        self.notified += 1

    def print(self, data: bytes) -> None:
        prod = self.words[abi.OUT_PROD // 4]
        for index, byte in enumerate(data):
            self.page[abi.OUT + (prod + index) % abi.OUT_SIZE] = byte
        self.words[abi.OUT_PROD // 4] = (prod + len(data)) & 0xFFFFFFFF
        self.console.on_event()

    def read(self, most: int = 4096) -> bytes:
        cons = self.words[abi.IN_CONS // 4]
        count = min(most, (self.words[abi.IN_PROD // 4] - cons) & 0xFFFFFFFF)
        data = bytes(self.page[abi.IN + (cons + index) % abi.IN_SIZE] for index in range(count))
        self.words[abi.IN_CONS // 4] = (cons + count) & 0xFFFFFFFF
        self.console.on_event()
        return data


@given(
    start=st.sampled_from([0, 1000, 0xFFFFFE00]),
    printed=st.lists(st.binary(min_size=1, max_size=2048), max_size=10),
    typed=st.lists(st.binary(max_size=3000), max_size=5),
)
def test_all_that_is_printed_and_typed_arrives(start: int, printed: list[bytes], typed: list[bytes]) -> None:
    guest = Guest(start)
    for data in printed:
        guest.print(data)
        assert guest.words[abi.OUT_CONS // 4] == guest.words[abi.OUT_PROD // 4]
    assert guest.printed == b"".join(printed)
    received = b""
    for data in typed:
        guest.console.type(data)
    while data := guest.read(700):
        received += data
    assert received == b"".join(typed)


def test_the_guest_is_notified_only_when_something_has_moved() -> None:
    guest = Guest()
    guest.console.on_event()
    assert guest.notified == 0
    guest.print(b"x")
    guest.console.type(b"y")
    assert guest.notified == 2


def test_a_guest_that_never_reads_costs_little() -> None:
    guest = Guest()
    for _ in range(1000):
        guest.console.type(b"x" * 1000)
    assert guest.console.full
    assert len(guest.console._typed) <= 64 * 1024


@given(
    words=st.lists(st.tuples(st.integers(768, 771), st.integers(0, 2**32 - 1)), max_size=20),
)
def test_impossible_indices_harm_nobody(words: list[tuple[int, int]]) -> None:
    guest = Guest()
    for word, value in words:
        guest.words[word] = value
        guest.console.on_event()
        guest.console.type(b"x")
    assert len(guest.printed) <= abi.OUT_SIZE * (2 * len(words) + 1)

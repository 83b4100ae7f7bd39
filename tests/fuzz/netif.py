"""A hostile netfront: packets in any number of slots, right and wrong, and pages to receive into that aren't there.

Every page holds words of its own, so that a frame shows which pages it was made of.
"""

from __future__ import annotations

import random
import struct
from collections import Counter
from collections.abc import Sequence

from pyxen.abi import netif as abi
from pyxen.backend.limit import Credit
from pyxen.backend.link import FRAME_MAX, PLAIN, Offload
from pyxen.backend.net_rx import Abilities, RxQueue
from pyxen.backend.net_tx import TxQueue
from pyxen.backend.ring import BackRing, RingError
from tests.fuzz.pages import PAGE, Pages, Restless

_REFS = range(16, 48)
_TX, _RX, _DATA, _COUNT = 0, 1, 8, 48
_SECRET = range(40, _COUNT)
_SLOTS = 256
_MORE, _EXTRA = 4, 8


class _Link:
    """Takes frames, and gives those that are put into ``arriving``."""

    segments = True
    unsent = False

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.arriving: list[tuple[bytes, Offload]] = []
        self.failing = False

    def fileno(self) -> int:
        return -1

    def accept(self, *, blank: bool, tso4: bool, tso6: bool) -> None: ...

    def use(self, active: bool) -> None: ...

    def send(self, pieces: Sequence[bytes | memoryview], offload: Offload) -> None:
        assert all(len(piece) for piece in pieces) and sum(map(len, pieces)) <= abi.PACKET_MAX
        if self.failing:
            raise OSError("gone")
        self.sent.append(b"".join(pieces))

    def receive(self, buffer: bytearray) -> tuple[int, Offload] | None:
        if not self.arriving:
            return None
        data, offload = self.arriving.pop(0)
        buffer[: len(data)] = data
        return len(data), offload

    def close(self) -> None: ...


class HostileNetfront:
    """A pair of rings. See harness.Target."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.outcomes: Counter[str] = Counter()
        self.pages = Pages(rng, _COUNT)
        self.pages.freeze(*_SECRET)
        self._words_of = {bytes(self.pages.page(gfn)[:64]) for gfn in _SECRET}
        self.orderly = rng.randrange(2) == 0
        self.link = _Link()
        for ref in _REFS:
            self._regrant(ref)
        self._connect()

    # harness.Target

    def step(self) -> int:
        rng = self.rng
        self.link.failing = rng.randrange(10) == 0
        for _ in range(rng.randrange(3)):
            self._regrant(rng.choice(_REFS))
        before = {gfn: bytes(self.pages.page(gfn)) for gfn in range(_DATA, _SECRET.start)}
        try:
            done = self._send() if rng.randrange(2) else self._receive(before)
        except RingError:
            done = 1
            self._reconnect("ring broken")
        if rng.randrange(100) == 0:
            self._reconnect("reconnected")
        return done

    def check(self) -> None:
        self.pages.check()

    def close(self) -> None:
        self.pages.given_back()

    # Rings

    def _connect(self) -> None:
        abilities = Abilities(*(bool(self.rng.randrange(2)) for _ in range(4)))
        rings = []
        self._prod = [self.rng.choice((0, 0xFFFFFFF8)) for _ in range(2)]
        for which in (_TX, _RX):
            page = self.pages.page(which)
            page[:] = bytes(PAGE)
            words = page.cast("I")
            words[0] = words[2] = self._prod[which]
            view = page if self.orderly else Restless(page, self._flip).view()
            rings.append(BackRing([view], (abi.TX_ENTRY_SIZE, abi.RX_ENTRY_SIZE)[which]))
        grants = self.pages.grants
        self._sizes = [ring.size for ring in rings]
        self.tx = TxQueue(rings[0], grants, self.link, Credit(None, 1))
        self.rx = RxQueue(rings[1], grants, self.link, abilities)
        self._abilities = abilities
        self.link.arriving.clear()

    def _reconnect(self, why: str) -> None:
        self.outcomes[why] += 1
        self.pages.given_back()
        self._connect()

    def _push(self, which: int, entries: list[bytes]) -> None:
        page, size = self.pages.page(which), (abi.TX_ENTRY_SIZE, abi.RX_ENTRY_SIZE)[which]
        for entry in entries:
            at = 64 + self._prod[which] % self._sizes[which] * size
            page[at : at + size] = entry
            self._prod[which] = (self._prod[which] + 1) & 0xFFFFFFFF
        jump = self.rng.choice((self._sizes[which] + 1, 1 << 31)) if self.rng.randrange(300) == 0 else 0
        page.cast("I")[0] = (self._prod[which] + jump) & 0xFFFFFFFF

    def _responses(self, which: int) -> int:
        return self.pages.page(which).cast("I")[2]

    def _flip(self, page: memoryview, start: int, end: int) -> None:
        rng = self.rng
        if rng.randrange(8) == 0:
            self._regrant(rng.choice(_REFS))
        if end - start == 4 and rng.randrange(64):
            return
        page[start:end] = (
            rng.randbytes(end - start) if rng.randrange(4) else self._slot(_MORE)[: end - start].ljust(end - start)
        )

    # Sending

    def _send(self) -> int:
        entries: list[bytes] = []
        while len(entries) < self.rng.choice((1, 8, 60)):
            entries += self._packet()
        entries = entries[: self._sizes[_TX]]
        before = self._responses(_TX)
        self._push(_TX, entries)
        self.tx.serve()
        self.tx.pause()
        answered = (self._responses(_TX) - before) & 0xFFFFFFFF
        if self.orderly:
            assert answered == len(entries), "not every slot was answered"
            self._compare(before, entries)
        else:
            # A restless ring's last packet may be cut off anywhere: it ends as a broken one or with these slots.
            self.outcomes["restless"] += len(entries)
            self._prod[_TX] = self._responses(_TX)
        for frame in self.link.sent:
            assert not any(word in frame for word in self._words_of), "a page that was not granted went out"
        self.link.sent.clear()
        return len(entries)

    def _slot(self, flags: int, size: int | None = None, *, careful: bool = False) -> bytes:
        rng = self.rng
        if careful and self.pages.refs:
            ref = rng.choice(list(self.pages.refs))
            return struct.pack("<IHHHH", ref, 0, flags, rng.getrandbits(16), (size or 0) & 0xFFFF)
        ref = rng.choice(_REFS) if rng.randrange(20) else rng.choice((0, 511, 512, 1 << 31, 0xFFFFFFFF))
        offset = rng.choice((0, 0, 64, 4000, rng.randrange(4096), rng.getrandbits(16)))
        if size is None:
            size = rng.choice((0, 14, 60, 1500, 4096 - offset, rng.getrandbits(16)))
        return struct.pack("<IHHHH", ref, offset & 0xFFFF, flags, rng.getrandbits(16), size & 0xFFFF)

    def _packet(self) -> list[bytes]:
        """A packet with its end, as whole as an orderly guest's is."""
        rng = self.rng
        slots = rng.choice((1, 1, 2, 4, 18, 19, 30))
        sizes = [rng.choice((0, 64, 500, 3000, rng.getrandbits(12))) for _ in range(slots)]
        careful = rng.randrange(2) == 0
        whole = sum(sizes) if careful or rng.randrange(8) else rng.getrandbits(16)
        extras = rng.choice((0, 0, 0, 1, 2, 5))
        flags = (_EXTRA if extras else 0) | (
            rng.getrandbits(16) & ~(_MORE | _EXTRA) if rng.randrange(8) == 0 else rng.randrange(4)
        )
        entries = [self._slot(flags | (_MORE if slots > 1 else 0), whole, careful=careful)]
        for number in range(extras):
            kind = rng.choice((1, 1, 2, 3, rng.getrandbits(8)))
            more = 1 if number < extras - 1 else 0
            entries.append(struct.pack("<BBHBxH4x", kind, more, rng.choice((0, 1460, 65535)), rng.randrange(4), 0))
        for number in range(1, slots):
            entries.append(self._slot(_MORE if number < slots - 1 else 0, sizes[number], careful=careful))
        return entries

    def _compare(self, before: int, entries: list[bytes]) -> None:
        """Each packet's answers agree, are about its slots, and are right."""
        page = self.pages.page(_TX)
        answers = []
        for index in range(len(entries)):
            at = 64 + (before + index) % self._sizes[_TX] * abi.TX_ENTRY_SIZE
            answers.append(struct.unpack_from("<Hh", page, at))
        sent = iter(self.link.sent)
        at = 0
        while at < len(entries):
            slots, extras, length, cut = _take_apart(entries[at:])
            frame = self._expected(slots, extras)
            statuses = {answers[at + index][1] for index, _ in slots}
            assert statuses == {0 if frame is not None else -1}, f"answers {statuses} to {entries[at : at + length]}"
            assert all(answers[at + index][0] == slot[3] for index, slot in slots), "an answer to another slot"
            if frame is not None:
                assert next(sent) == frame, "another frame went out than was sent"
            self.outcomes["sent" if frame is not None else "refused"] += length
            at += length
            assert not cut
        assert next(sent, None) is None, "a frame too many"

    def _expected(self, slots: list[tuple[int, tuple[int, ...]]], extras: list[bytes]) -> bytes | None:
        """The frame, by the interface's description; None if the packet is to be refused."""
        whole = slots[0][1][4]
        sizes = [slot[4] for _, slot in slots]
        sizes[0] = whole - sum(sizes[1:])
        if len(slots) > 18 or whole < 14 or sizes[0] < 0 or self.link.failing:
            return None
        gso = [extra for extra in extras if extra[0] == 1]
        if gso:
            _, _, size, kind, _ = struct.unpack_from("<BBHBxH", gso[-1])
            if not size or kind not in (1, 2):
                return None
        frame = b""
        for (_, (ref, offset, _, _, _)), size in zip(slots, sizes, strict=True):
            if offset + size > PAGE:
                return None
            if not size:
                continue
            granted = self.pages.refs.get(ref)
            if granted is None or granted[0] >= _COUNT:
                return None
            frame += self.pages.page(granted[0])[offset : offset + size]
        return frame

    # Receiving

    def _receive(self, before: dict[int, bytes]) -> int:
        rng = self.rng
        entries = [struct.pack("<HxxI", rng.getrandbits(16), self._rx_ref()) for _ in range(rng.choice((1, 4, 40)))]
        free = self._sizes[_RX] - ((self._prod[_RX] - self._responses(_RX)) & 0xFFFFFFFF)
        entries = entries[: max(0, free)]
        self._push(_RX, entries)
        for _ in range(rng.randrange(4)):
            length = rng.choice((0, 14, 60, 1514, 4096, 4097, 65535, FRAME_MAX))
            offload = rng.choice(
                (PLAIN, PLAIN, Offload(blank=True, validated=True), Offload(True, True, 1460, bool(rng.randrange(2))))
            )
            self.link.arriving.append((rng.randbytes(16) * (length // 16 + 1), offload))
            self.link.arriving[-1] = (self.link.arriving[-1][0][:length], offload)
        self.rx.serve()
        self.rx.stuck()
        writable = {gfn for gfn, readonly in self.pages.refs.values() if not readonly}
        for gfn, old in before.items():
            if self.orderly and gfn not in writable:
                assert self.pages.page(gfn) == old, f"page {gfn:#x} was written, which is not granted for that"
        self.outcomes["offered"] += len(entries)
        if len(self.link.arriving) > 100:
            self.link.arriving.clear()
        return max(1, len(entries))

    def _rx_ref(self) -> int:
        rng = self.rng
        return rng.choice(_REFS) if rng.randrange(10) else rng.choice((0, 511, 512, 0xFFFFFFFF, rng.getrandbits(32)))

    def _regrant(self, ref: int) -> None:
        rng = self.rng
        kind, gfn = rng.randrange(12), rng.randrange(_DATA, _SECRET.start)
        if kind == 0:
            self.pages.grant(ref, rng.choice((_COUNT, 1 << 20, 0xFFFFFFFF)))
        elif kind == 1:
            self.pages.grant(ref, gfn, flags=rng.choice((0, 2, 3, 0x1D)), domid=rng.choice((0, 1, 7)))
        elif kind == 2:
            self.pages.revoke(ref)
        else:
            self.pages.grant(ref, gfn, readonly=rng.randrange(3) == 0)


def _take_apart(entries: list[bytes]) -> tuple[list[tuple[int, tuple[int, ...]]], list[bytes], int, bool]:
    """The first packet: its slots (place, fields), its extras, how many all are, and whether its end is missing."""
    first = struct.unpack("<IHHHH", entries[0])
    slots, extras, at = [(0, first)], [], 1
    if first[2] & _EXTRA:
        while at < len(entries):
            extras.append(entries[at])
            at += 1
            if not extras[-1][1] & 1:
                break
        else:
            return slots, extras, at, True
    flags = first[2]
    while flags & _MORE:
        if at == len(entries):
            return slots, extras, at, True
        slot = struct.unpack("<IHHHH", entries[at])
        slots.append((at, slot))
        flags = slot[2]
        at += 1
    return slots, extras, at, False

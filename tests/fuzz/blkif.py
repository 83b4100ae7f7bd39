"""A hostile blkfront: requests right, wrong and anything between, grants that come and go, a ring that changes.

*Orderly* guests leave a page alone while the back end has it; then what must come of each request is known, and each
answer, page and sector of the disk is compared. *Restless* ones change what has just been read.
"""

from __future__ import annotations

import random
import struct
import sys
import threading
from collections import Counter
from collections.abc import Sequence

from pyxen.abi import blkif as abi
from pyxen.backend.block_queue import BlockQueue
from pyxen.backend.granted import GrantedPages
from pyxen.backend.limit import Limit
from pyxen.backend.ring import BackRing, RingError
from tests.fuzz.pages import PAGE, Pages, Restless

_REFS = range(16, 80)
_DATA, _COUNT = 32, 96
_RING = range(4)
_SECRET = range(80, _COUNT)
_MOST_INDIRECT = 256
_READ, _WRITE, _BARRIER, _FLUSH, _DISCARD, _INDIRECT = 0, 1, 2, 3, 5, 6
_ERROR, _UNSUPPORTED = -1, -2
_EDGES = (1 << 64, 1 << 63, 1 << 55, (1 << 64) // 512, 1 << 32, 1 << 31)


class MemoryDisk:
    """A disk that is asked for nothing but what it has, or it says so."""

    sector_size = 512

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.data = bytearray(rng.randbytes(512)) * rng.choice((1, 97, 600, 1024)) + bytearray(rng.choice((0, 0, 100)))
        self.read_only = rng.randrange(4) == 0
        self.discards = rng.randrange(2) == 0
        self.failing = False
        self.size = len(self.data)

    def read_into(self, offset: int, views: Sequence[memoryview]) -> None:
        self._inside(offset, sum(map(len, views)))
        for view in views:
            view[:] = self.data[offset : offset + len(view)]
            offset += len(view)

    def write_from(self, offset: int, views: Sequence[memoryview]) -> None:
        assert not self.read_only, "written, though for reading only"
        self._inside(offset, sum(map(len, views)))
        for view in views:
            self.data[offset : offset + len(view)] = view
            offset += len(view)

    def flush(self) -> None:
        if self.failing:
            raise OSError("flush")

    def discard(self, offset: int, length: int) -> None:
        assert self.discards and not self.read_only
        self._inside(offset, length)
        self.data[offset : offset + length] = bytes(length)

    def cancel(self, on: bool) -> None: ...

    def close(self) -> None: ...

    def _inside(self, offset: int, length: int) -> None:
        assert offset >= 0 and length > 0 and offset + length <= self.size // 512 * 512, "beyond the disk"
        if self.failing:
            raise OSError("broken")


class HostileBlkfront:
    """One ring. See harness.Target."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.outcomes: Counter[str] = Counter()
        self.bits = rng.choice((64, 32))
        self.pages = Pages(rng, _COUNT)
        self.pages.freeze(*_SECRET)
        self.disk = MemoryDisk(rng)
        self.orderly = rng.randrange(2) == 0
        self.persistent = rng.randrange(2) == 0
        self._kept: dict[int, tuple[int, bool]] = {}
        for ref in _REFS:
            self._regrant(ref)
        self._order = rng.choice((0, 0, 1, 2))
        self._connect()

    # harness.Target

    def step(self) -> int:
        rng = self.rng
        self.disk.failing = rng.randrange(16) == 0
        for _ in range(rng.randrange(3)):
            self._disturb()
        if rng.randrange(64) == 0:
            return self._jump()
        count = rng.choice((1, 1, 2, 5, self._size))
        requests = [self._request() for _ in range(count)]
        before = self._words[2]
        for request in requests:
            self._store(request)
        self._words[0] = self._prod & 0xFFFFFFFF
        expected = [self._expect(request) for request in requests] if self.orderly else []
        try:
            self._queue.serve()
            self._queue.idle()
        except RingError:
            assert not self.orderly
            self._reconnect("ring broken")
            return count
        if self.orderly:
            assert (self._words[2] - before) & 0xFFFFFFFF == count, "not every request was answered"
            for index, (request, wanted) in enumerate(zip(requests, expected, strict=True)):
                self._compare(before + index, request, wanted)
            self._compare_memory()
        else:
            self.outcomes["restless"] += count
        if rng.randrange(100) == 0:
            self._reconnect("reconnected")
        return count

    def check(self) -> None:
        self.pages.check()

    def close(self) -> None:
        self._queue.close()
        self.pages.given_back()

    # The ring

    def _connect(self) -> None:
        pages = [self.pages.page(gfn) for gfn in list(_RING)[: 1 << self._order]]
        for page in pages:
            page[:] = bytes(PAGE)
        self._ring_pages = pages
        self._words = pages[0].cast("I")
        self._prod = self.rng.choice((0, 0, 0xFFFFFFF0))
        self._words[0] = self._words[2] = self._prod
        views = pages if self.orderly else [Restless(page, self._flip).view() for page in pages]
        self._shadow = {gfn: bytearray(self.pages.page(gfn)) for gfn in range(_DATA, _SECRET.start)}
        self._shadow_disk = bytearray(self.disk.data)
        ring = BackRing(views, abi.ENTRY_SIZE[self.bits])
        self._size = ring.size
        self._kept.clear()
        granted = _Lists(self.pages.grants, self.persistent, None if self.orderly else self._flip)
        self._queue = BlockQueue(
            ring, granted, self.disk, Limit(None, None), bits=self.bits, most_indirect=_MOST_INDIRECT
        )

    def _reconnect(self, why: str) -> None:
        self.outcomes[why] += 1
        self._queue.close()
        self.pages.given_back()
        self._connect()

    def _jump(self) -> int:
        """An index that can't be: so many requests don't fit."""
        self._words[0] = (self._prod + self.rng.choice((self._size + 1, 1 << 31, 0xFFFFFFFF))) & 0xFFFFFFFF
        try:
            self._queue.serve()
            assert not self.orderly, "an impossible index was believed"
        except RingError:
            pass
        self._reconnect("jumped")
        return 1

    def _store(self, request: bytes) -> None:
        start = 64 + self._prod % self._size * abi.ENTRY_SIZE[self.bits]
        for index, byte in enumerate(request):
            at = start + index
            self._ring_pages[at // PAGE][at % PAGE] = byte
        self._prod = (self._prod + 1) & 0xFFFFFFFF

    def _response(self, index: int) -> tuple[int, int, int]:
        start = 64 + index % self._size * abi.ENTRY_SIZE[self.bits]
        size = 16 if self.bits == 64 else 12
        raw = bytes(self._ring_pages[(start + at) // PAGE][(start + at) % PAGE] for at in range(size))
        identity, operation, status = struct.unpack_from("<QBxh", raw)
        return identity, operation, status

    def _flip(self, page: memoryview, start: int, end: int) -> None:
        """The guest writes over what has just been read, and takes back or changes what it has granted."""
        rng = self.rng
        if rng.randrange(8) == 0:
            self._disturb()
        if end - start > 200:
            for _ in range(4):
                start_at = rng.randrange(end - 8)
                page[start_at : start_at + 8] = self._segment()
        elif end - start == 4 and rng.randrange(64):
            return  # an index that moves at every look ends the ring too soon
        else:
            request = self._request() + bytes(200)
            page[start:end] = request[: end - start]

    # Requests

    def _segment(self) -> bytes:
        rng = self.rng
        first, last = rng.randrange(8), rng.randrange(8)
        if rng.randrange(6):
            first, last = min(first, last), max(first, last)
        if rng.randrange(40) == 0:
            first, last = rng.getrandbits(8), rng.getrandbits(8)
        ref = (
            rng.choice(_REFS)
            if rng.randrange(30)
            else rng.choice((0, 511, 512, 1 << 31, 0xFFFFFFFF, rng.getrandbits(32)))
        )
        return struct.pack("<IBBH", ref, first, last, rng.getrandbits(16) if rng.randrange(2) else 0)

    def _request(self) -> bytes:
        rng = self.rng
        operation = rng.choice((_READ, _READ, _WRITE, _WRITE, _BARRIER, _FLUSH, _DISCARD, _INDIRECT, _INDIRECT))
        count = rng.randrange(4) if rng.randrange(4) else rng.randrange(13)
        sectors = self.disk.size // 512
        sector = rng.randrange(sectors) if rng.randrange(6) else rng.choice((sectors, *_EDGES)) - rng.randrange(3)
        sector &= (1 << 64) - 1
        identity = rng.getrandbits(64)
        pad = b"\0\0\0\0" if self.bits == 64 else b""
        if operation == _DISCARD:
            length = rng.choice((0, 1, sectors, rng.randrange(sectors + 1), *_EDGES)) & (1 << 64) - 1
            raw = (
                struct.pack("<BBH", operation, rng.getrandbits(8), 0)
                + pad
                + struct.pack("<QQQ", identity, sector, length)
            )
        elif operation == _INDIRECT:
            count = (
                rng.choice((0, 1, 3, 12, 100, 256, 257, 512, 513, 4096, 65535))
                if rng.randrange(3)
                else rng.randrange(9)
            )
            inner = rng.choice((_READ, _WRITE, _READ, _WRITE, _FLUSH, _INDIRECT, rng.getrandbits(8)))
            refs = [rng.choice(_REFS) for _ in range(8)]
            raw = (
                struct.pack("<BBH", operation, inner, count)
                + pad
                + struct.pack("<QQHH8I", identity, sector, 0, 0, *refs)
            )
            if rng.randrange(4):
                self._fill_list(refs[0], count)
        else:
            raw = struct.pack("<BBH", operation, count, 0) + pad + struct.pack("<QQ", identity, sector)
            raw += b"".join(self._segment() for _ in range(11))
        data = bytearray(raw.ljust(abi.ENTRY_SIZE[self.bits], b"\0")[: abi.ENTRY_SIZE[self.bits]])
        if rng.randrange(8) == 0:
            for _ in range(rng.randrange(1, 4)):
                data[rng.randrange(len(data))] = rng.getrandbits(8)
        return bytes(data)

    def _fill_list(self, ref: int, count: int) -> None:
        """Segments into a page that an indirect request names: now and then of that very page."""
        if ref not in self.pages.refs:
            return
        gfn = self.pages.refs[ref][0]
        if not _DATA <= gfn < _SECRET.start or not self.rng.randrange(2):
            return
        segments = [self._segment() for _ in range(min(count, 16))]
        if segments and self.rng.randrange(4) == 0:
            segments[0] = struct.pack("<IBBH", ref, 0, 7, 0)
        data = b"".join(segments)
        self.pages.page(gfn)[: len(data)] = data
        self._shadow[gfn][: len(data)] = data

    def _disturb(self) -> None:
        rng = self.rng
        ref = rng.choice(_REFS)
        if rng.randrange(2):
            self._regrant(ref)
        elif rng.randrange(4) == 0:
            self.pages.revoke(ref)

    def _regrant(self, ref: int) -> None:
        rng = self.rng
        gfn = rng.randrange(_DATA, _SECRET.start)
        kind = rng.randrange(12)
        if kind == 0:
            gfn = rng.choice((_COUNT, 1 << 20, 0xFFFFFFFF))
        if kind == 1:
            self.pages.grant(
                ref, gfn, flags=rng.choice((0, 2, 3, 0x101, 0x18, 0x1D)), domid=rng.choice((0, 0, 1, 7, 0x7FF0))
            )
        else:
            self.pages.grant(ref, gfn, readonly=rng.randrange(4) == 0)

    # What must come of an orderly guest's request, from the interface's description

    def _expect(self, raw: bytes) -> tuple[int, int]:
        """The answer's operation and status; the shadow disk and pages change as the real ones must."""
        head = 8 if self.bits == 64 else 4
        operation, second, _ = struct.unpack_from("<BBH", raw)
        (sector,) = struct.unpack_from("<Q", raw, head + 8)
        if operation == _DISCARD:
            (length,) = struct.unpack_from("<Q", raw, head + 16)
            return operation, self._expect_discard(sector, length)
        if operation == _INDIRECT:
            count = struct.unpack_from("<H", raw, 2)[0]
            refs = struct.unpack_from("<8I", raw, head + 20)
            if second not in (_READ, _WRITE) or not 0 < count <= _MOST_INDIRECT:
                return second, _ERROR
            table = b""
            for ref in refs[: -(-count // 512)]:
                gfn = self._map(ref, write=False)
                if gfn is None:
                    return second, _ERROR
                table += self._shadow[gfn]
            return second, self._expect_transfer(second, sector, table[: count * 8])
        if second > 11:
            return operation, _ERROR
        return operation, self._expect_transfer(operation, sector, raw[head + 16 : head + 16 + 8 * second])

    def _expect_discard(self, sector: int, length: int) -> int:
        if not self.disk.discards:
            return _UNSUPPORTED
        if sector + length > self.disk.size // 512 or self.disk.read_only:
            return _ERROR
        if length and self.disk.failing:
            return _ERROR
        self._shadow_disk[sector * 512 : (sector + length) * 512] = bytes(length * 512)
        return 0

    def _expect_transfer(self, operation: int, sector: int, table: bytes) -> int:
        segments = list(struct.iter_unpack("<IBBxx", table))
        if any(first > last or last > 7 for _, first, last in segments):
            return _ERROR
        if operation not in (_READ, _WRITE, _BARRIER, _FLUSH):
            return _UNSUPPORTED
        if operation in (_FLUSH, _BARRIER) and self.disk.failing:
            return _ERROR
        if not segments:
            return 0 if operation in (_FLUSH, _BARRIER) else _ERROR
        if operation != _READ and self.disk.read_only:
            return _ERROR
        if sector + sum(last - first + 1 for _, first, last in segments) > self.disk.size // 512:
            return _ERROR
        places = []
        for ref, first, last in segments:
            gfn = self._map(ref, write=operation == _READ)
            if gfn is None:
                return _ERROR
            places.append((gfn, first * 512, (last - first + 1) * 512))
        if self.disk.failing:
            return _ERROR
        at = sector * 512
        for gfn, start, length in places:
            if operation == _READ:
                self._shadow[gfn][start : start + length] = self._shadow_disk[at : at + length]
            else:
                self._shadow_disk[at : at + length] = self._shadow[gfn][start : start + length]
            at += length
        return 0

    def _map(self, ref: int, *, write: bool) -> int | None:
        """The frame that the back end gets; a persistent one keeps what it has had."""
        kept = self._kept.get(ref)
        if kept is not None and not (write and kept[1]):
            return kept[0]
        granted = self.pages.refs.get(ref)
        if granted is None or (write and granted[1]) or (kept is None and granted[0] >= _COUNT):
            return None
        if self.persistent and kept is None:
            self._kept[ref] = granted
        # As in Xen, an entry that is in use stays what it was, whatever the guest writes there.
        return granted[0] if kept is None else kept[0]

    def _compare(self, index: int, request: bytes, wanted: tuple[int, int]) -> None:
        identity, operation, status = self._response(index)
        head = 8 if self.bits == 64 else 4
        assert identity == struct.unpack_from("<Q", request, head)[0], "an answer to another request"
        assert (operation, status) == wanted, f"{request.hex(' ')}: {(operation, status)}, not {wanted}"
        self.outcomes[f"op {request[0] if request[0] < 7 else 'unknown'}: {status}"] += 1

    def _compare_memory(self) -> None:
        assert self.disk.data == self._shadow_disk, "the disk is not as it should be"
        for gfn, shadow in self._shadow.items():
            assert self.pages.page(gfn) == shadow, f"page {gfn:#x} is not as it should be"


class _Lists(GrantedPages):
    """Hands out pages that change when they are read whole, as lists of segments are."""

    def __init__(self, grants: object, persistent: bool, change: object) -> None:
        super().__init__(grants, persistent=persistent)  # type: ignore[arg-type]
        self._flip = change

    def get(self, ref: int, *, write: bool) -> memoryview:
        page = super().get(ref, write=write)
        if self._flip is None or write:
            return page
        return _Slices(page, self._flip).view()  # type: ignore[arg-type]


class _Slices(Restless):
    """Read whole, it is a list that changes; slices are the guest's own memory, for the disk to read."""

    def __getitem__(self, key: slice) -> memoryview:  # type: ignore[override]
        return self._page[key]


class RacingBlkfront(HostileBlkfront):
    """A restless guest whose other CPU is a thread: nothing here can be replayed, and nothing is staged."""

    def __init__(self, rng: random.Random) -> None:
        self._racing = False
        super().__init__(rng)
        self.orderly = False
        self._other = random.Random(rng.random())
        self._interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        self._racing = True
        self._connect()
        self._thread = threading.Thread(target=self._race, name="other-cpu")
        self._thread.start()

    def close(self) -> None:
        self._racing = False
        self._thread.join()
        sys.setswitchinterval(self._interval)
        super().close()

    def _race(self) -> None:
        rng, page = self._other, self.pages.page
        words = page(_RING.start).cast("I")
        while self._racing:
            at = 64 + 4 * rng.randrange(1000)
            page(_RING.start)[at : at + 4] = rng.randbytes(4)
            start = 8 * rng.randrange(16)
            segment = struct.pack("<IBBH", rng.choice(_REFS), rng.randrange(8), rng.getrandbits(4), 0)
            page(rng.randrange(_DATA, _SECRET.start))[start : start + 8] = segment
            if rng.randrange(50) == 0:
                words[0] = (words[2] + rng.randrange(self._size)) & 0xFFFFFFFF

    def _flip(self, page: memoryview, start: int, end: int) -> None:
        if not self._racing:
            super()._flip(page, start, end)

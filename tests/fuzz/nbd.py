"""A disk server that answers nonsense, too little, too late, or for somebody else."""

from __future__ import annotations

import random
import struct
import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any

from pyxen.backend.nbd import NbdDisk
from pyxen.errors import PyxenError

_GUARD = b"\xc5" * 4096


class _Socket:
    """The server's answers, as if they came by a socket; each is right but for what the dice change."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._output = bytearray()
        self.gone = False
        self._answer(struct.pack(">8s8sH", b"NBDMAGIC", b"IHAVEOPT", rng.choice((1, 3, 3, 3, rng.getrandbits(16)))))

    def sendall(self, data: bytes) -> None:
        self._alive()
        rng = self._rng
        if data[4:12] == b"IHAVEOPT":
            for _ in range(rng.choice((0, 1, 2, 5))):
                size = rng.choice((1 << 20, 0, (1 << 64) - 1, rng.getrandbits(64)))
                info = rng.choice(
                    (struct.pack(">HQH", 0, size, rng.getrandbits(16)), struct.pack(">HIII", 3, 1, 4096, 1 << 25))
                )
                info = info if rng.randrange(6) else info[: rng.randrange(len(info))]
                self._option(3, info)
            kind = rng.choice((1, 1, 1, 1, 0x80000001, 0x80000006, 2, rng.getrandbits(32)))
            self._option(kind, b"" if kind == 1 else rng.randbytes(rng.randrange(20)))
            if kind not in (1,):
                self._option(1, b"")

    def sendmsg(self, views: Sequence[memoryview]) -> int:
        self._alive()
        rng = self._rng
        data = b"".join(views)
        _, _, command, cookie, _, length = struct.unpack_from(">IHHQQI", data)
        code = rng.choice((0, 0, 0, 0, 5, 28, 0xFFFFFFFF, rng.getrandbits(32)))
        cookie ^= rng.choice((0,) * 20 + (1, 1 << 63))
        self._answer(struct.pack(">IIQ", 0x67446698, code, cookie))
        if command == 0 and not code:
            self._answer(rng.randbytes(length) if rng.randrange(10) else rng.randbytes(rng.randrange(length + 1)))
        return len(data)

    def recv_into(self, view: memoryview) -> int:
        self._alive()
        if not self._output or self._rng.randrange(200) == 0:
            kind = self._rng.randrange(3)
            if kind == 0:
                raise TimeoutError("timed out")
            if kind == 1:
                raise ConnectionResetError("reset")
            return 0
        count = min(len(view), len(self._output), self._rng.choice((1, 7, 1 << 20, 1 << 20)))
        view[:count] = self._output[:count]
        del self._output[:count]
        return count

    def fileno(self) -> int:
        return -1 if self.gone else 3

    def close(self) -> None:
        self.gone = True

    def _alive(self) -> None:
        if self.gone:
            raise OSError(9, "Bad file descriptor")

    def _option(self, kind: int, data: bytes) -> None:
        magic = 0x3E889045565A9 if self._rng.randrange(40) else self._rng.getrandbits(63)
        length = len(data) if self._rng.randrange(40) else self._rng.getrandbits(32)
        self._answer(struct.pack(">QIII", magic, 7, kind, length) + data)

    def _answer(self, data: bytes) -> None:
        rng = self._rng
        changed = bytearray(data)
        if changed and rng.randrange(40) == 0:
            changed[rng.randrange(len(changed))] = rng.getrandbits(8)
        self._output += changed if rng.randrange(60) else changed[: rng.randrange(len(changed) + 1)]


class HostileServer:
    """One connection after the other. See harness.Target."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.outcomes: Counter[str] = Counter()
        self._buffer = bytearray(_GUARD + bytes(8192) + _GUARD)
        self._disk: NbdDisk | None = None

    def step(self) -> int:
        rng = self.rng
        if self._disk is None or self._disk._socket.fileno() < 0:
            self._connect()
            return 1
        offset, length = 512 * rng.randrange(16), 512 * rng.randrange(1, 9)
        views = [memoryview(self._buffer)[4096 : 4096 + length], memoryview(self._buffer)[8192 : 8192 + length]]
        try:
            kind = rng.randrange(5)
            if kind < 2:
                self._disk.read_into(offset, views)
            elif kind == 2:
                self._disk.write_from(offset, views)
            elif kind == 3:
                self._disk.flush()
            else:
                self._disk.discard(offset, rng.choice((length, 1 << 32)))
            self.outcomes["served"] += 1
        except OSError:
            self.outcomes["failed"] += 1
        return 1

    def check(self) -> None:
        assert self._buffer[:4096] == self._buffer[-4096:] == _GUARD, "memory around the buffers has changed"

    def close(self) -> None: ...

    def _connect(self) -> None:
        disk = object.__new__(NbdDisk)
        transport: Any = _Socket(self.rng)
        disk._name, disk._lock, disk._cookie, disk._held = "xvda", threading.Lock(), 0, False
        disk.size, disk.sector_size, disk._flags, disk._socket = 0, 512, 0, transport
        try:
            disk._negotiate(b"")
        except (OSError, PyxenError):  # as NbdDisk's constructor handles them
            self.outcomes["not connected"] += 1
            return
        assert 0 <= disk.size < 1 << 63, f"a disk of {disk.size} bytes"
        self._disk = disk
        self.outcomes["connected"] += 1

"""A hostile client of the store, on the ring in its own memory: messages right, wrong, cut off, out of turn.

Another domain and Domain-0 have nodes of their own, with a secret that must never come out, and watch what goes on.
"""

from __future__ import annotations

import mmap
import random
import struct
from collections import Counter

from pyxen.abi import xs_wire as wire
from pyxen.abi.xs_wire import PAYLOAD_MAX, Error, Op
from pyxen.xenstore.local import Local
from pyxen.xenstore.ring import Ring
from tests.unit.xenstore.talk import Party, guest_store

_PAGE = 4096
_CANARY = b"\xc5" * _PAGE
_NAMES = ("data", "device", "vbd", "state", "a", "b", "c", "@x", "-", "0", "51712")
_OPS = tuple(Op)
_WRITERS = (Op.WRITE, Op.WRITE, Op.MKDIR, Op.RM, Op.SET_PERMS, Op.READ, Op.DIRECTORY, Op.DIRECTORY_PART, Op.GET_PERMS)


class HostileClient:
    """Domain 1. See harness.Target."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.outcomes: Counter[str] = Counter()
        self.store, self.tools, _ = guest_store()
        self._secret = rng.randbytes(16).replace(b"\0", b"\1")
        for path in ("/local/domain/0/secret", "/local/domain/1/device/secret", "/vm/secret"):
            self.tools.write(path, self._secret)
            self.tools.chmod(path, "n0")
        self.tools.write("/shown", b"to all")
        self.tools.chmod("/shown", "r0")
        self.store.introduce(2)
        self.other = Party(self.store, 2)
        self.tools.mkdir("/local/domain/2")
        self.tools.chmod("/local/domain/2", "n2")
        self.other.write("/local/domain/2/own", b"its own")
        self.heard = 0
        self.local = Local(self.store)
        self.local.watch("/local/domain/1", self._hear)
        self.tools.watch("/", "all")
        self.other.watch("/shown", "shown")
        self._backing = mmap.mmap(-1, 3 * _PAGE)
        self._backing[:_PAGE] = self._backing[-_PAGE:] = _CANARY
        self._page = memoryview(self._backing)[_PAGE : 2 * _PAGE]
        self._words = self._page.cast("I")
        self.ring = Ring(self.store, 1, self._page, lambda: None)
        self._answers = bytearray()
        self._transactions = [0]
        self._requests = 0

    # harness.Target

    def step(self) -> int:
        rng = self.rng
        kind = rng.randrange(600)
        if kind == 0:
            self._break_indices()
        elif kind == 1:
            self._reconnect()
        elif kind < 4:
            # Requests that have been taken, or the words beside the indices.
            self._page[rng.choice((rng.randrange(wire.RING_SIZE), 2064 + rng.randrange(16)))] = rng.getrandbits(8)
            self.ring.poll()
            self._reconnect()
        else:
            self._send(self._message())
        if rng.randrange(8) == 0:
            self._others()
        if rng.randrange(3):
            self._read()
        return 1

    def check(self) -> None:
        assert self._backing[:_PAGE] == self._backing[-_PAGE:] == _CANARY, "memory around the page has changed"
        for path in ("/local/domain/0/secret", "/local/domain/1/device/secret", "/vm/secret"):
            assert self.tools.read(path) == self._secret
        assert self.tools.read("/shown") == b"to all"
        assert self.tools.read("/local/domain/2/own") == b"its own"
        owned = sum(node.perms.owner == 1 for node in self.store.tree.root.walk())
        assert owned == self.store.tree.owned.get(1, 0) <= self.store.quota.nodes, f"{owned} nodes"
        assert len(self.ring.connection.transactions) <= self.store.quota.transactions
        assert len(self.ring.connection._events) <= self.store.quota.events + self.store.quota.watches
        self.store.release(1)
        assert self.store.tree.owned.get(1, 0) == 0

    def close(self) -> None:
        pass

    # The others

    def _hear(self, path: str) -> None:
        self.heard += 1

    def _others(self) -> None:
        """What the host does meanwhile."""
        self.local.settle()
        self.tools.drain()
        self.tools.events.clear()
        kind = self.rng.randrange(4)
        path = f"/local/domain/1/device/{self.rng.choice(_NAMES)}"
        if kind == 0:
            self.local.write(path, self.rng.randrange(10))
        elif kind == 1 and self.rng.randrange(10) == 0 and not path.endswith("secret"):
            self.local.remove(path)
        elif kind == 2:
            self.other.write("/local/domain/2/busy", b"%d" % self.rng.randrange(10))
        else:
            assert [path for path, _ in self.other.heard() if path != "/shown"] == []

    # Messages

    def _path(self) -> bytes:
        rng = self.rng
        kind = rng.randrange(24)
        names = "/".join(rng.choice(_NAMES) for _ in range(rng.randrange(1, 5)))
        if kind < 8:
            path = f"/local/domain/1/data/{names}"
        elif kind < 12:
            path = f"data/{names}"
        elif kind < 15:
            path = rng.choice(
                ("/local/domain/0/secret", "/local/domain/2/own", "/shown", "/", "/vm", "/tool", "device/secret")
            )
        elif kind == 15:
            path = rng.choice(
                ("@introduceDomain", "@releaseDomain", "@other", "", "//", "/a//b", "/a/", "\xff", "/a b")
            )
        elif kind == 16:
            path = "/local/domain/1/data" + f"/{rng.choice('abc')}" * rng.choice((100, 130, 1000, 1500))
        elif kind == 17:
            path = "data/" + rng.choice("abcd") * rng.choice((100, 2040, 2048, 3000, 3072, 4000))
        else:
            path = f"/local/domain/{rng.randrange(3)}/{names}"
        return path.encode("latin-1")

    def _payload(self, op: int) -> bytes:
        rng = self.rng
        path = self._path()
        if op == Op.WRITE:
            return path + b"\0" + rng.randbytes(rng.choice((0, 1, 10, 100, 2047, 2048, 2049, 4000)))
        if op == Op.SET_PERMS:
            entries = (b"n1", b"n1", b"r0", b"b2", b"w1", b"n0", b"n2", b"x1", b"n99999", b"r32752", b"", b"n-1")
            return path + b"\0" + b"".join(rng.choice(entries) + b"\0" for _ in range(rng.randrange(1, 8)))
        if op in (Op.WATCH, Op.UNWATCH):
            token = rng.choice((b"t", b"u", rng.randbytes(4).replace(b"\0", b"x"), b"T" * rng.choice((1000, 4000))))
            return path + b"\0" + token + b"\0" + rng.choice((b"", b"", b"", b"0\0", b"2\0", b"x\0", b"9" * 20 + b"\0"))
        if op == Op.DIRECTORY_PART:
            return path + b"\0" + rng.choice((b"0", b"1", b"5000", b"99999999999", b"-1", b"")) + b"\0"
        if op == Op.TRANSACTION_END:
            return rng.choice((b"T\0", b"T\0", b"F\0", b"T", b"", b"X\0"))
        if op == Op.TRANSACTION_START:
            return rng.choice((b"\0", b"", b"x"))
        if rng.randrange(6) == 0:
            return rng.choice((b"1\0", b"0\0", b"7\0", b"32752\0", b"x\0", b"\xc2\xb2\0", b"1\x000\x000\0"))
        return path + (b"\0" if rng.randrange(20) else b"")

    def _message(self) -> bytes:
        rng = self.rng
        kind = rng.randrange(20)
        if kind < 12:
            op = int(rng.choice(_WRITERS))
        elif kind < 15:
            op = int(rng.choice((Op.TRANSACTION_START, Op.TRANSACTION_END, Op.WATCH, Op.UNWATCH)))
        elif kind < 19:
            op = int(rng.choice(_OPS))
            if op == Op.RESET_WATCHES and rng.randrange(8):
                op = int(Op.WATCH)
        else:
            op = rng.getrandbits(rng.choice((5, 5, 5, 32)))
        payload = self._payload(op)[:PAYLOAD_MAX]
        tx = rng.choice(self._transactions) if rng.randrange(20) else rng.getrandbits(32)
        if op == Op.TRANSACTION_START and rng.randrange(8):
            tx = 0
        self._requests = (self._requests + 1) & 0xFFFFFFFF
        length = len(payload)
        kind = rng.randrange(1000)
        if kind == 0:
            length = rng.choice(
                (length + 1, max(0, length - 1), PAYLOAD_MAX, PAYLOAD_MAX + 1, 0xFFFFFFFF, rng.getrandbits(32))
            )
        message = bytearray(struct.pack("<4I", op, self._requests, tx, length) + payload)
        if kind < 40:
            for _ in range(rng.randrange(1, 4)):
                message[rng.randrange(12 if kind % 2 else len(message)) if len(message) > 16 else rng.randrange(12)] = (
                    rng.getrandbits(8)
                )
        if kind == 40:
            del message[rng.randrange(len(message)) :]
        return bytes(message)

    # The ring

    def _send(self, message: bytes) -> None:
        """In as many pieces as fit; a guest that reads no answers is not waited for."""
        for _ in range(40):
            cons, prod = self._words[wire.REQ_CONS // 4], self._words[wire.REQ_PROD // 4]
            room = wire.RING_SIZE - ((prod - cons) & 0xFFFFFFFF)
            part = message[: max(0, room)]
            if self.rng.randrange(4) == 0:
                part = part[: self.rng.randrange(len(part) + 1)]
            for index, byte in enumerate(part):
                self._page[(prod + index) % wire.RING_SIZE] = byte
            self._words[wire.REQ_PROD // 4] = (prod + len(part)) & 0xFFFFFFFF
            self.ring.poll()
            message = message[len(part) :]
            if not message:
                return
            self._read()
        self._reconnect()

    def _read(self) -> None:
        cons, prod = self._words[wire.RSP_CONS // 4], self._words[wire.RSP_PROD // 4]
        count = (prod - cons) & 0xFFFFFFFF
        if count > wire.RING_SIZE:  # the guest's own doing
            self._reconnect()
            return
        for index in range(count):
            self._answers.append(self._page[wire.RESPONSES + (cons + index) % wire.RING_SIZE])
        self._words[wire.RSP_CONS // 4] = prod
        self.ring.poll()
        self._look()

    def _look(self) -> None:
        assert self._secret not in self._answers, "the secret came out"
        while len(self._answers) >= 16:
            op, request, _, length = struct.unpack_from("<4I", self._answers)
            assert length <= PAYLOAD_MAX, f"an answer of {length} bytes"
            assert op in iter(Op) or request, f"an answer of kind {op}"
            if len(self._answers) < 16 + length:
                return
            payload = bytes(self._answers[16 : 16 + length])
            del self._answers[: 16 + length]
            if op == Op.ERROR:
                name = payload.rstrip(b"\0").decode()
                assert name in Error.__members__, name
                self.outcomes[name] += 1
            else:
                self.outcomes[f"op {op}"] += 1
                if op == Op.TRANSACTION_START and payload[:-1].isdigit():
                    self._transactions = [0, *self._transactions[-10:], int(payload[:-1])]

    def _break_indices(self) -> None:
        rng = self.rng
        self._words[rng.choice((512, 513, 514, 515))] = rng.getrandbits(rng.choice((11, 32)))
        self.ring.poll()
        self._reconnect()

    def _reconnect(self) -> None:
        self._words[wire.CONNECTION // 4] = wire.RECONNECT
        self.ring.poll()
        assert self._words[wire.CONNECTION // 4] == wire.CONNECTED
        self._answers.clear()
        self._transactions = [0]
        self.outcomes["reconnected"] += 1

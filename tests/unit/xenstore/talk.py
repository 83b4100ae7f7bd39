"""A party that speaks the wire protocol to a store, without any transport."""

from __future__ import annotations

from dataclasses import dataclass, field

from pyxen.abi.xs_wire import HEADER, Error, Op
from pyxen.xenstore.connection import Connection
from pyxen.xenstore.errors import XsError
from pyxen.xenstore.store import Store


@dataclass
class Party:
    """``ask`` returns the reply's payload or raises XsError; ``events`` holds path and token of each watch event."""

    store: Store
    domid: int
    events: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.connection = Connection(self.store, self.domid)

    def ask(self, op: int, payload: bytes, *, tx: int = 0) -> bytes:
        self.connection.receive(HEADER.pack(op, 77, tx, len(payload)) + payload)
        replies = self.drain()
        assert len(replies) == 1
        kind, request, reply_tx, reply = replies[0]
        assert (request, reply_tx) == (77, tx)
        if kind == Op.ERROR:
            raise XsError(Error[reply.rstrip(b"\0").decode()])
        assert kind == op
        return reply

    def drain(self) -> list[tuple[int, int, int, bytes]]:
        replies = []
        while output := self.connection.output:
            kind, request, tx, length = HEADER.unpack_from(output)
            payload = bytes(output[HEADER.size : HEADER.size + length])
            del output[: HEADER.size + length]
            if kind == Op.WATCH_EVENT:
                path, token, _ = payload.split(b"\0")
                self.events.append((path.decode(), token.decode()))
            else:
                replies.append((kind, request, tx, payload))
        return replies

    def heard(self) -> list[tuple[str, str]]:
        assert self.drain() == []
        events, self.events = self.events, []
        return events

    def read(self, path: str, *, tx: int = 0) -> bytes:
        return self.ask(Op.READ, path.encode() + b"\0", tx=tx)

    def write(self, path: str, value: bytes, *, tx: int = 0) -> None:
        assert self.ask(Op.WRITE, path.encode() + b"\0" + value, tx=tx) == b"OK\0"

    def mkdir(self, path: str, *, tx: int = 0) -> None:
        assert self.ask(Op.MKDIR, path.encode() + b"\0", tx=tx) == b"OK\0"

    def rm(self, path: str, *, tx: int = 0) -> None:
        assert self.ask(Op.RM, path.encode() + b"\0", tx=tx) == b"OK\0"

    def names(self, path: str, *, tx: int = 0) -> list[str]:
        return self.ask(Op.DIRECTORY, path.encode() + b"\0", tx=tx).decode().split("\0")[:-1]

    def perms(self, path: str) -> list[str]:
        return self.ask(Op.GET_PERMS, path.encode() + b"\0").decode().split("\0")[:-1]

    def chmod(self, path: str, *perms: str) -> None:
        payload = "".join(part + "\0" for part in (path, *perms)).encode()
        assert self.ask(Op.SET_PERMS, payload) == b"OK\0"

    def watch(self, path: str, token: str, depth: int | None = None) -> None:
        tail = b"" if depth is None else b"%d\0" % depth
        assert self.ask(Op.WATCH, f"{path}\0{token}\0".encode() + tail) == b"OK\0"

    def begin(self) -> int:
        return int(self.ask(Op.TRANSACTION_START, b"\0").rstrip(b"\0"))

    def end(self, tx: int, *, commit: bool = True) -> None:
        assert self.ask(Op.TRANSACTION_END, b"T\0" if commit else b"F\0", tx=tx) == b"OK\0"


def guest_store() -> tuple[Store, Party, Party]:
    """A store with the home of domain 1, as a tool stack makes it; domain 0 and domain 1."""
    store = Store()
    tools, guest = Party(store, 0), Party(store, 1)
    tools.mkdir("/local/domain/1")
    tools.chmod("/local/domain/1", "n0", "r1")
    tools.mkdir("/local/domain/1/data")
    tools.chmod("/local/domain/1/data", "n1")
    store.introduce(1)
    return store, tools, guest

"""A guest that says to xend what no agent says: greetings, frames and bytes of all kinds, in pieces of any size."""

from __future__ import annotations

import random
from collections import Counter

from pyxen.abi.agent import HEADER_SIZE, MOST_PAYLOAD, NONCE_SIZE, OUTPUT_WINDOW, VERSION, Kind
from pyxen.errors import EngineError
from pyxen.xend.agent_frames import GREETING, HEADER, Frame, Frames
from pyxen.xend.agent_link import Command


class HostileAgent:
    """Speaks to the reader of frames, and to one command. See harness.Target."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.outcomes: Counter[str] = Counter()
        self._nonce = rng.randbytes(NONCE_SIZE)
        self._begin()

    def step(self) -> int:
        data = self._greeting() if not self.frames.greeted and self.rng.randrange(3) == 0 else self._bytes()
        while data:
            cut = self.rng.randrange(1, len(data) + 1)
            try:
                for frame in self.frames.feed(data[:cut]):
                    assert len(frame.payload) <= MOST_PAYLOAD
                    self.outcomes[frame.kind.name] += 1
                    self.command.take(frame)
            except EngineError:
                self.outcomes["hung up"] += 1
                self._begin()
                return 1
            assert len(self.frames._data) < HEADER_SIZE + MOST_PAYLOAD + cut
            assert max(self.command._kept) <= OUTPUT_WINDOW
            data = data[cut:]
        return 1

    def check(self) -> None: ...

    def close(self) -> None: ...

    def _begin(self) -> None:
        self.frames = Frames(self._nonce)
        self.command = object.__new__(Command)
        nothing = type("Nothing", (), {})()
        Command.__init__(self.command, nothing, 0)

    def _greeting(self) -> bytes:
        version = VERSION if self.rng.randrange(4) else self.rng.getrandbits(32)
        return (
            self.rng.randbytes(self.rng.randrange(40))
            + Frame(Kind.HELLO, payload=self._nonce + GREETING.pack(version, 0)).pack()
        )

    def _bytes(self) -> bytes:
        rng = self.rng
        kind = rng.randrange(8)
        if kind == 0:
            return rng.randbytes(rng.randrange(1, 300))
        length = rng.choice((0, 4, 4, 4, 16, 24, 1000, MOST_PAYLOAD, MOST_PAYLOAD + 1, 1 << 31)) if kind == 1 else 4
        what = rng.choice(list(Kind)) if rng.randrange(8) else rng.getrandbits(8)
        if what == Kind.STARTED:
            length = 16
        head = HEADER.pack(what, rng.randrange(4), rng.randrange(3), length)
        return head + rng.randbytes(min(length, MOST_PAYLOAD) if rng.randrange(8) else rng.randrange(60))

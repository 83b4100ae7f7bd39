"""Frames to and from a guest's agent, as :mod:`pyxen.abi.agent` has them. Nothing here does I/O.

A guest may send anything. Before its greeting all of it is thrown away; afterwards what is no frame ends the
conversation. Never is more kept than one frame.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from pyxen.abi.agent import HEADER_SIZE, MOST_PAYLOAD, VERSION, Kind
from pyxen.errors import EngineError

HEADER: Final = struct.Struct("<BBHI")
GREETING: Final = struct.Struct("<II")
PADDING: Final = bytes(HEADER_SIZE + MOST_PAYLOAD)
"""Ends whatever frame an agent may still be waiting for the rest of."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame."""

    kind: Kind
    stream: int = 0
    id: int = 0
    payload: bytes = b""

    def pack(self) -> bytes:
        return HEADER.pack(self.kind, self.stream, self.id, len(self.payload)) + self.payload

    @property
    def number(self) -> int:
        """The payload of ACK, EXIT and RESULT. Raises EngineError if it has another size."""
        if len(self.payload) != 4:
            raise EngineError(f"the guest's agent sent {self.kind.name} with {len(self.payload)} bytes")
        return int.from_bytes(self.payload, "little")


class Frames:
    """What a guest sends, piece by piece. ``nonce``: what the greeting that is waited for must repeat."""

    def __init__(self, nonce: bytes) -> None:
        self.greeted = False
        self._nonce = nonce
        self._data = bytearray()

    def expect(self, nonce: bytes) -> None:
        """Wait for another greeting."""
        self._nonce = nonce
        self.greeted = False

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that are whole now. Raises EngineError for what is none, and for an agent of another version."""
        self._data += data
        if not self.greeted and not self._find_greeting():
            return []
        frames: list[Frame] = []
        position = 0
        while len(self._data) - position >= HEADER_SIZE:
            kind, stream, number, length = HEADER.unpack_from(self._data, position)
            if length > MOST_PAYLOAD or not Kind.HELLO <= kind <= Kind.RESEED:
                raise EngineError("the guest's agent does not keep to its protocol")
            end = position + HEADER_SIZE + length
            if end > len(self._data):
                break
            frames.append(Frame(Kind(kind), stream, number, bytes(self._data[position + HEADER_SIZE : end])))
            position = end
        del self._data[:position]
        return frames

    def _find_greeting(self) -> bool:
        beginning = HEADER.pack(Kind.HELLO, 0, 0, len(self._nonce) + GREETING.size) + self._nonce
        found = self._data.find(beginning)
        if found < 0:
            del self._data[: max(0, len(self._data) - len(beginning) + 1)]
            return False
        end = found + len(beginning) + GREETING.size
        if len(self._data) < end:
            del self._data[:found]
            return False
        version, _ = GREETING.unpack_from(self._data, found + len(beginning))
        del self._data[:end]
        if version != VERSION:
            raise EngineError(
                f"the guest's agent speaks version {version} of the protocol, this xend speaks {VERSION}",
                hint="Build the image again: xm image build --force NAME",
            )
        self.greeted = True
        return True


def exec_payload(argv: list[str], env: dict[str, str], cwd: str, *, flags: int, rows: int, columns: int) -> bytes:
    """The payload of EXEC. The words must not have zero characters in them."""
    words = [cwd, *argv, *(f"{key}={value}" for key, value in env.items())]
    head = struct.pack("<IHHII", flags, rows, columns, len(argv), len(env))
    return head + b"".join(word.encode(errors="surrogateescape") + b"\0" for word in words)

"""The file that holds a domain's saved state: a head in plain JSON, what the monitor wrote, compressed, and an end.

    bytes 0-15    "pyxen saved" and zeros
    16-19, 20-23  the head's length and CRC-32, little-endian
    then          the head: JSON of Head
    then          one zstd frame with a checksum: the monitor's stream
    last 24       "pyxen whole" and zeros (16), the file's length before these 24 bytes (8, little-endian)

Only a file with its end is whole; what is cut off or was changed on the way is refused.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import msgspec
import zstandard

from pyxen.config.model import DomainConfig
from pyxen.errors import InvalidRequest, NotFound, ResourceExhausted

VERSION = 1
_MAGIC = b"pyxen saved".ljust(16, b"\0")
_END = b"pyxen whole".ljust(16, b"\0")
_FRONT = struct.Struct("<16sII")
_BACK = struct.Struct("<16sQ")
_LONGEST_HEAD = 16 << 20
_CHUNK = 1 << 20
_LEVEL = 1


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of the domain besides its state."""

    version: int
    save_id: str
    """Of this one save, by which a xend that starts again knows the file."""
    engine: str
    machine: str
    """The monitor's model of a machine."""
    generation: str | None = None
    """DomainSpec's, if this is the only place where the guest will go on; None: it gets another."""
    slots: dict[str, int] = {}
    """Where its devices are (engine.contract.DomainSpec)."""
    qga: bool = False
    """The same of its port for QEMU's guest agent."""
    config: DomainConfig
    managed: bool
    restart_count: int = 0


def write(fd: int, head: Head, stream: int) -> int:
    """Write the whole file from what comes out of ``stream`` up to its end, and sync it; returns its length.

    Blocking. Raises ResourceExhausted if there is no room.
    """
    try:
        with os.fdopen(fd, "wb", closefd=False) as file, os.fdopen(stream, "rb", buffering=0, closefd=False) as source:
            data = msgspec.json.encode(head)
            file.write(_FRONT.pack(_MAGIC, len(data), zlib.crc32(data)) + data)
            compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True, threads=-1)
            compressor.copy_stream(source, file, read_size=_CHUNK, write_size=_CHUNK)
            length = file.tell()
            file.write(_BACK.pack(_END, length))
            file.flush()
            os.fsync(fd)
            return length + _BACK.size
    except OSError as error:
        raise ResourceExhausted(f"the state can't be written: {error.strerror}") from error


def read_head(path: Path) -> tuple[Head, int]:
    """The head of a whole file, and where its state begins. Blocking. Raises NotFound and InvalidRequest."""
    try:
        with path.open("rb") as file:
            front = file.read(_FRONT.size)
            size = file.seek(0, os.SEEK_END)
            if len(front) < _FRONT.size or not front.startswith(_MAGIC):
                raise _refused(path, "is no saved domain")
            _, length, checksum = _FRONT.unpack(front)
            file.seek(max(_FRONT.size, size - _BACK.size))
            back = file.read(_BACK.size)
            if length > _LONGEST_HEAD or len(back) < _BACK.size or back != _BACK.pack(_END, size - _BACK.size):
                raise _refused(path, "is cut off: its end is missing")
            file.seek(_FRONT.size)
            data = file.read(length)
    except FileNotFoundError:
        raise NotFound(f"{path} does not exist") from None
    except OSError as error:
        raise InvalidRequest(f"cannot read {path}: {error.strerror}") from error
    if zlib.crc32(data) != checksum:
        raise _refused(path, "is damaged: its head has changed")
    try:
        version = msgspec.json.decode(data, type=_Version).version
        if version > VERSION:
            raise InvalidRequest(
                f"{path} was saved by a newer pyxen (format {version}, this one reads up to {VERSION})",
                hint="Upgrade pyxen to restore it.",
            )
        return msgspec.json.decode(data, type=Head), _FRONT.size + length
    except msgspec.DecodeError as error:
        raise _refused(path, f"has a head that can't be read: {error}") from error


class _Version(msgspec.Struct):
    version: int


def read_state(path: Path, start: int, sink: Callable[[memoryview], None]) -> None:
    """Give the state that begins at ``start`` to ``sink``, piece by piece. Blocking.

    Raises InvalidRequest where the file is damaged, and what ``sink`` raises.
    """
    with path.open("rb") as file:
        remaining = file.seek(0, os.SEEK_END) - _BACK.size - start
        file.seek(start)
        decompressor = zstandard.ZstdDecompressor().decompressobj()
        try:
            while remaining > 0 and (data := file.read(min(_CHUNK, remaining))):
                remaining -= len(data)
                sink(memoryview(decompressor.decompress(data)))
        except zstandard.ZstdError as error:
            raise _refused(path, f"is damaged: {error}") from error
    if remaining or not decompressor.eof or decompressor.unused_data:
        raise _refused(path, "is damaged: its state has no proper end")


def _refused(path: Path, why: str) -> InvalidRequest:
    return InvalidRequest(f"{path} {why}", hint="It can't be restored from; is there a copy of it?")

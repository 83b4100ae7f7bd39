"""Initial ramdisks: the "newc" form of cpio (Linux, Documentation/driver-api/early-userspace/buffer-format.rst).

What is written depends on the contents alone: entries are sorted, numbered in that order, owned by root and dated to
the start of 1970.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

_MAGIC: Final = b"070701"
_FIELDS: Final = 13
_HEADER: Final = len(_MAGIC) + 8 * _FIELDS
_TRAILER: Final = "TRAILER!!!"
_LONGEST_NAME: Final = 4096


@dataclass(frozen=True, slots=True)
class Entry:
    """One file, folder, symbolic link (``data`` is its target) or device node. ``mode`` has the file's type too."""

    path: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


class Archive:
    """An archive in the making. Paths are relative to the root; the folders above each entry come by themselves."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}

    def folder(self, path: str, mode: int = 0o755) -> None:
        self._add(Entry(path, stat.S_IFDIR | mode))

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        self._add(Entry(path, stat.S_IFREG | mode, data))

    def symlink(self, path: str, target: str) -> None:
        self._add(Entry(path, stat.S_IFLNK | 0o777, target.encode()))

    def character_device(self, path: str, major: int, minor: int, mode: int = 0o600) -> None:
        self._add(Entry(path, stat.S_IFCHR | mode, device=(major, minor)))

    def _add(self, entry: Entry) -> None:
        parts = entry.path.split("/")
        if any(part in ("", ".", "..") for part in parts) or "\x00" in entry.path or entry.path == _TRAILER:
            raise ValueError(f"{entry.path!r} can't be a path in an archive")
        for depth in range(1, len(parts)):
            above = "/".join(parts[:depth])
            if not stat.S_ISDIR(self._entries.setdefault(above, Entry(above, stat.S_IFDIR | 0o755)).mode):
                raise ValueError(f"{above!r} is no folder, so {entry.path!r} can't be in it")
        self._entries[entry.path] = entry

    def entries(self) -> Iterator[Entry]:
        """All entries, each folder before what is in it."""
        for path in sorted(self._entries):
            yield self._entries[path]

    def pack(self) -> bytes:
        """The archive's bytes, a multiple of 512 long."""
        packed = bytearray()
        for number, entry in enumerate(self.entries(), start=1):
            _append(packed, entry, number)
        _append(packed, Entry(_TRAILER, 0), 0)
        return bytes(packed) + bytes(-len(packed) % 512)


def _append(packed: bytearray, entry: Entry, number: int) -> None:
    name = entry.path.encode() + b"\x00"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (number, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device, len(name), 0)
    packed += _MAGIC + b"".join(b"%08X" % field for field in fields)
    packed += name
    packed += bytes(-len(packed) % 4)
    packed += entry.data
    packed += bytes(-len(packed) % 4)


def read(data: bytes) -> list[Entry]:
    """The entries of one archive, without its trailer. Raises ValueError if it is damaged or cut off."""
    entries: list[Entry] = []
    position = 0
    while True:
        header = data[position : position + _HEADER]
        if len(header) < _HEADER or not header.startswith(_MAGIC):
            raise ValueError(f"there is no cpio header at {position}")
        digits = header[len(_MAGIC) :]
        fields = [int(digits[at : at + 8], 16) for at in range(0, len(digits), 8)]
        mode, size, device, name_size = fields[1], fields[6], (fields[9], fields[10]), fields[11]
        start = position + _HEADER
        if not 0 < name_size <= _LONGEST_NAME or data[start + name_size - 1 : start + name_size] != b"\x00":
            raise ValueError(f"the name at {start} is damaged")
        name = data[start : start + name_size - 1].decode(errors="surrogateescape")
        start = _align(start + name_size)
        if start + size > len(data):
            raise ValueError(f"{name!r} is cut off")
        if name == _TRAILER:
            return entries
        entries.append(Entry(name, mode, data[start : start + size], device))
        position = _align(start + size)


def _align(position: int) -> int:
    return (position + 3) // 4 * 4

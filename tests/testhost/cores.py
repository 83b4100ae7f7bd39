"""``python -m tests.testhost.cores CORE WORD``: what an ELF core holds, and whether the guest's memory has the word."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import Any

_PT_LOAD, _PT_NOTE = 1, 4


def read(path: Path, word: bytes) -> dict[str, Any]:
    """The core's pieces of memory as (address, size), its notes as (name, type, size), RIPs, and where the word is."""
    with path.open("rb") as file:
        header = struct.unpack("<16sHHIQQQIHHHHHH", file.read(64))
        assert header[0][:5] == b"\x7fELF\x02", header
        assert (header[1], header[2]) == (4, 62), header
        file.seek(header[5])
        segments = [struct.unpack("<IIQQQQQQ", file.read(56)) for _ in range(header[10])]
        found: dict[str, Any] = {"memory": [], "notes": [], "rip": [], "word": []}
        for kind, _, offset, _, address, size, memory_size, _ in segments:
            file.seek(offset)
            data = file.read(size)
            assert len(data) == size == memory_size, (size, memory_size)
            if kind == _PT_NOTE:
                _notes(data, found)
            elif kind == _PT_LOAD:
                found["memory"].append((address, size))
                if (at := data.find(word)) >= 0:
                    found["word"].append(address + at)
        return found


def _notes(data: bytes, found: dict[str, Any]) -> None:
    at = 0
    while at < len(data):
        name_size, size, kind = struct.unpack_from("<III", data, at)
        name = data[at + 12 : at + 12 + name_size].rstrip(b"\0").decode()
        at += 12 + -(-name_size // 4) * 4
        found["notes"].append((name, kind, size))
        if name == "CORE":
            found["rip"].append(struct.unpack_from("<Q", data, at + 112 + 16 * 8)[0])
        at += -(-size // 4) * 4


if __name__ == "__main__":
    sys.stdout.write(json.dumps(read(Path(sys.argv[1]), sys.argv[2].encode())) + "\n")

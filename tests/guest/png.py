"""Pictures of screens, as far as tests look at them: PNG with 8 bits for each of red, green and blue."""

from __future__ import annotations

import zlib
from collections import Counter

Pixel = tuple[int, int, int]


def colours(picture: bytes) -> Counter[Pixel]:
    """How many pixels there are of each colour (PNG specification, section 9, for the filters)."""
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = int.from_bytes(picture[16:20], "big"), int.from_bytes(picture[20:24], "big")
    assert picture[24:29] == b"\x08\x02\0\0\0", "not 8 bits RGB"
    data = zlib.decompress(b"".join(chunk for kind, chunk in _chunks(picture) if kind == b"IDAT"))
    before = bytes(3 * width)
    found: Counter[Pixel] = Counter()
    for row in range(height):
        start = row * (3 * width + 1)
        line = bytearray(data[start + 1 : start + 1 + 3 * width])
        _unfilter(data[start], line, before)
        found.update(zip(line[0::3], line[1::3], line[2::3], strict=True))
        before = bytes(line)
    return found


def _chunks(picture: bytes) -> list[tuple[bytes, bytes]]:
    chunks, at = [], 8
    while at < len(picture):
        size = int.from_bytes(picture[at : at + 4], "big")
        chunks.append((picture[at + 4 : at + 8], picture[at + 8 : at + 8 + size]))
        at += size + 12
    return chunks


def _unfilter(kind: int, line: bytearray, above: bytes) -> None:
    for index in range(len(line)):
        left = line[index - 3] if index >= 3 else 0
        corner = above[index - 3] if index >= 3 else 0
        guess = (0, left, above[index], (left + above[index]) // 2, _paeth(left, above[index], corner))[kind]
        line[index] = (line[index] + guess) & 0xFF


def _paeth(left: int, above: int, corner: int) -> int:
    estimate = left + above - corner
    return min((left, above, corner), key=lambda each: abs(estimate - each))

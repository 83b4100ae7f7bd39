"""The compressed forms a Linux kernel comes in.

x86 kernels append the unpacked length as four bytes to every form but gzip, which ends in it anyway
(Linux, scripts/Makefile.lib: size_append). Data after the end of a stream is therefore not an error here.

Everything raises ValueError with a reason; nothing unpacks more than it was told to.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable
from typing import Final

MAGICS: Final = {
    "gzip": b"\x1f\x8b\x08",
    "xz": b"\xfd7zXZ\x00",
    "lzma": b"\x5d\x00\x00",
    "lz4": b"\x02\x21\x4c\x18",
    "zstd": b"\x28\xb5\x2f\xfd",
    "bzip2": b"BZh",
    "lzo": b"\x89LZO\x00\r\n\x1a\n",
}
"""What each form begins with; the LZ4 one is the *legacy* frame, the only one that kernels use."""

_LZ4_BLOCK = 8 << 20
_XZ_MEMORY = 256 << 20


def detect(data: bytes | memoryview) -> str | None:
    """The name of the form that ``data`` begins with."""
    head = bytes(data[:16])
    return next((name for name, magic in MAGICS.items() if head.startswith(magic)), None)


def decompress(form: str, data: bytes | memoryview, limit: int) -> bytes:
    """All that is packed in ``data``; more than ``limit`` bytes are refused."""
    unpacked = peek(form, data, limit + 1)
    if len(unpacked) > limit:
        raise ValueError(f"it unpacks to more than {limit >> 20} MiB")
    return unpacked


def peek(form: str, data: bytes | memoryview, size: int) -> bytes:
    """The first ``size`` unpacked bytes, or all of them if there are fewer."""
    try:
        return _FORMS[form](memoryview(data), size)
    except (zlib.error, lzma.LZMAError, OSError, EOFError) as error:
        raise ValueError(f"its {form} data are damaged ({error})") from error
    except MemoryError as error:
        raise ValueError(f"its {form} data need more memory than there is") from error


def _finish(unpacked: bytes, ended: bool, form: str, size: int) -> bytes:
    if not ended and len(unpacked) < size:
        raise ValueError(f"its {form} data are cut off")
    return unpacked


def _gzip(data: memoryview, size: int) -> bytes:
    stream = zlib.decompressobj(wbits=31)
    return _finish(stream.decompress(data, size), stream.eof, "gzip", size)


def _lzma(data: memoryview, size: int) -> bytes:
    alone = bytes(data[:3]) == MAGICS["lzma"]
    stream = lzma.LZMADecompressor(lzma.FORMAT_ALONE if alone else lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)
    unpacked = stream.decompress(data, size)
    # A stream without an end marker is complete when its header gives the length, and liblzma says so by eof.
    return _finish(unpacked, stream.eof, "lzma" if alone else "xz", size)


def _bzip2(data: memoryview, size: int) -> bytes:
    stream = bz2.BZ2Decompressor()
    return _finish(stream.decompress(data, size), stream.eof, "bzip2", size)


def _zstd(data: memoryview, size: int) -> bytes:
    import zstandard

    try:
        with zstandard.ZstdDecompressor().stream_reader(data) as reader:
            return reader.read(size)
    except zstandard.ZstdError as error:
        raise ValueError(f"its zstd data are damaged ({error})") from error


def _lz4(data: memoryview, size: int) -> bytes:
    import lz4.block

    blocks: list[bytes] = []
    total = 0
    position = len(MAGICS["lz4"])
    while total < size and len(data) - position > 4:
        packed = int.from_bytes(data[position : position + 4], "little")
        position += 4
        if packed == int.from_bytes(MAGICS["lz4"], "little"):  # another frame follows
            continue
        if not 0 < packed <= len(data) - position:
            raise ValueError("its lz4 data are cut off")
        try:
            block: bytes = lz4.block.decompress(data[position : position + packed], uncompressed_size=_LZ4_BLOCK)
        except lz4.block.LZ4BlockError as error:
            raise ValueError(f"its lz4 data are damaged ({error})") from error
        blocks.append(block)
        total += len(block)
        position += packed
    return b"".join(blocks)[:size]


def _lzo(data: memoryview, size: int) -> bytes:
    raise ValueError("it is packed with LZO, which pyxen can't unpack")


_FORMS: Final[dict[str, Callable[[memoryview, int], bytes]]] = {
    "gzip": _gzip,
    "xz": _lzma,
    "lzma": _lzma,
    "lz4": _lz4,
    "zstd": _zstd,
    "bzip2": _bzip2,
    "lzo": _lzo,
}

"""Small kernels for tests, packed in each of the ways that Linux knows."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
from collections.abc import Callable

import lz4.block
import zstandard

RELEASE = "6.1.0-9-test"
BANNER = f"Linux version {RELEASE} (me@here) #1 SMP".encode()
ENTRY = 0x1000040


def note(name: bytes, kind: int, contents: bytes) -> bytes:
    """An ELF note."""
    padded = name + b"\x00"
    head = struct.pack("<III", len(padded), len(contents), kind)
    return head + padded + bytes(-len(padded) % 4) + contents + bytes(-len(contents) % 4)


def vmlinux(*, bits: int = 64, machine: int | None = None, pvh: bool = True, kind: int = 2) -> bytes:
    """An ELF file with code, a Xen note, zeros at its end, and symbols that nobody needs."""
    notes = note(b"GNU", 3, b"build id") + note(b"Xen", 6, b"linux\x00")
    if pvh:
        notes += note(b"Xen", 18, ENTRY.to_bytes(bits // 8, "little"))
    code = b"\x90" * 64 + BANNER.ljust(192, b"\x00") + notes
    content = code + bytes(8192)
    note_at = len(code) - len(notes)
    header_size, row_size = (64, 56) if bits == 64 else (52, 32)
    start = 4096
    machine = machine if machine is not None else (62 if bits == 64 else 3)
    header = b"\x7fELF" + bytes([bits // 32, 1, 1]) + bytes(9)
    form = "<HHIQQQIHHHHHH" if bits == 64 else "<HHIIIIIHHHHHH"
    header += struct.pack(form, kind, machine, 1, 0x1000000, header_size, 0, 0, header_size, row_size, 2, 0, 0, 0)
    rows = b""
    for type, offset, size, memory in (
        (1, start, len(content), len(content) + 4096),
        (4, start + note_at, len(notes), 0),
    ):
        address = 0x1000000 + offset - start
        if bits == 64:
            rows += struct.pack("<IIQQQQQQ", type, 7, offset, address, address, size, memory or size, 4096)
        else:
            rows += struct.pack("<8I", type, offset, address, address, size, memory or size, 7, 4096)
    return (header + rows).ljust(start, b"\x00") + content + b"symbols" * 1000


def _lz4_legacy(data: bytes) -> bytes:
    packed = b"\x02\x21\x4c\x18"
    for start in range(0, len(data), 8 << 20):
        block = lz4.block.compress(data[start : start + (8 << 20)], store_size=False)
        packed += len(block).to_bytes(4, "little") + block
    return packed


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "xz": lambda data: lzma.compress(data, lzma.FORMAT_XZ, lzma.CHECK_CRC32),
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
    "lz4": _lz4_legacy,
    "zstd": lambda data: zstandard.ZstdCompressor(write_content_size=False).compress(data),
    "bzip2": bz2.compress,
}


def payload(form: str, data: bytes) -> bytes:
    """What the kernel's build puts into a bzImage: all but gzip get the length at their end."""
    size = b"" if form == "gzip" else len(data).to_bytes(4, "little")
    return PACKERS[form](data) + size


def bzimage(packed: bytes, *, version: int = 0x20F, release: str = RELEASE, setup_sects: int = 4) -> bytes:
    """A bzImage around a packed kernel."""
    setup = bytearray((setup_sects + 1) * 512)
    setup[0x1F1] = setup_sects
    setup[0x1FE:0x200] = b"\x55\xaa"
    setup[0x202:0x206] = b"HdrS"
    setup[0x206:0x208] = version.to_bytes(2, "little")
    if release:
        text = f"{release} (me@here) #1 SMP\x00".encode()
        setup[0x300 : 0x300 + len(text)] = text
        setup[0x20E:0x210] = (0x100).to_bytes(2, "little")
    loader = b"\xcc" * 100
    if version >= 0x208:
        setup[0x248:0x24C] = len(loader).to_bytes(4, "little")
        setup[0x24C:0x250] = len(packed).to_bytes(4, "little")
    return bytes(setup) + loader + packed + b"\xf4" * 50


def module(info: bytes) -> bytes:
    """An ELF object with a .modinfo section, which makes it a kernel module as far as its needs are asked for."""
    names = b"\x00.modinfo\x00.shstrtab\x00"
    table = 64 + len(info) + len(names)
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, table, 0, 64, 0, 0, 64, 3, 2)
    rows = bytes(64)
    for name, type, offset, size in ((1, 1, 64, len(info)), (10, 3, 64 + len(info), len(names))):
        rows += struct.pack("<IIQQQQIIQQ", name, type, 0, 0, offset, size, 0, 0, 1, 0)
    return header + info + names + rows

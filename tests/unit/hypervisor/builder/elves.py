"""Kernels of a few bytes, as ELF files."""

from __future__ import annotations

import struct

VMMCALL, VMCALL = b"\x0f\x01\xd9", b"\x0f\x01\xc1"
LOAD_AT = 0x100000
CODE_OFFSET = 0x1000
NOTE_ENTRY, NOTE_HYPERCALL_PAGE, NOTE_GUEST_OS = 18, 2, 6


def note(kind: int, contents: bytes) -> bytes:
    padded = contents + bytes(-len(contents) % 4)
    return struct.pack("<III", 4, len(contents), kind) + b"Xen\0" + padded


def linux_like(code: bytes, *, notes: bytes | None = None, bss: int = 0x1000) -> bytes:
    """A 64-bit ELF with ``code`` loaded at LOAD_AT, entered there, and Xen's notes."""
    if notes is None:
        notes = note(NOTE_ENTRY, struct.pack("<Q", LOAD_AT)) + note(NOTE_GUEST_OS, b"linux\0")
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    header = struct.pack("<16xHHIQQQIHHHHHH", 2, 62, 1, LOAD_AT, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    load = struct.pack("<IIQQQQQQ", 1, 5, CODE_OFFSET, 0xFFFFFFFF81000000, LOAD_AT, len(code), len(code) + bss, 4096)
    place = 0x200
    noted = struct.pack("<IIQQQQQQ", 4, 4, place, 0, 0, len(notes), len(notes), 4)
    head = (ident + header[16:] + load + noted).ljust(place, b"\0") + notes
    return head.ljust(CODE_OFFSET, b"\0") + code


def jumping_pair(at: int = 0) -> bytes:
    """The two functions as Linux has them: the instruction, a jump to one thunk, padding to 16 bytes."""
    thunk = 0x400
    first = VMMCALL + b"\xe9" + struct.pack("<i", thunk - (at + 8)) + bytes(8)
    second = VMCALL + b"\xe9" + struct.pack("<i", thunk - (at + 16 + 8)) + bytes(8)
    return first + second

"""How a kernel makes hypercalls, and what must be changed in its copy in memory so that they reach us.

KVM handles VMCALL and VMMCALL by itself and tells nobody. OUT does come to us, so hypercalls are made with it:

- in the hypercall page, whose 32-byte entries the hypervisor fills anyway (older kernels, XTF, BSDs);
- in kernels that have no such page since they execute the instruction themselves (Linux since the end of 2024, after
  Xen's advisory 466): two functions of one instruction each, VMMCALL for AMD and VMCALL for Intel, both of three bytes,
  as are ``out imm8, eax; nop``.

Those two functions are known by their shape: one instruction each, then a return (``ret``, or a jump to one and the
same place), next to each other at a function's alignment. Nothing else in a kernel looks like that.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

PORT: Final = 0xE8
"""The port whose OUT is a hypercall; nothing lives there on a PC."""

_VMMCALL: Final = b"\x0f\x01\xd9"
_VMCALL: Final = b"\x0f\x01\xc1"
_TRAP: Final = bytes([0xE7, PORT, 0x90])  # out imm8, eax; nop
_ENDBR: Final = b"\xf3\x0f\x1e\xfa"
_SITE: Final = re.compile(rb"\x0f\x01([\xd9\xc1])(?:\xe9(....)|\xc3)", re.DOTALL)
_JUMP_LENGTH: Final = 5
_ALIGNMENT: Final = {64: 16, 32: 4}
"""Of functions, by a kernel's width (Linux, CONFIG_FUNCTION_ALIGNMENT)."""
_FARTHEST: Final = 64

PAGE_ENTRY_SIZE: Final = 32
_PAGE_ENTRIES: Final = 128
_IRET: Final = 23


@dataclass(frozen=True, slots=True)
class _Site:
    address: int
    """Of the instruction, physical."""
    instruction: bytes
    target: int | None
    """Where it returns through; None: a plain return."""


def find(pieces: Iterable[tuple[int, bytes | memoryview]], bits: int = 64) -> list[int]:
    """The physical addresses of the two instructions in executable ``pieces`` (address, contents) of a kernel.

    Empty if there are none, so that the kernel must use the hypercall page. Raises ValueError if there are too many.
    """
    sites = [site for address, data in pieces for site in _candidates(address, data, _ALIGNMENT[bits])]
    pairs = [
        (one, other)
        for one in sites
        for other in sites
        if one.instruction == _VMMCALL
        and other.instruction == _VMCALL
        and one.target == other.target
        and 0 < abs(one.address - other.address) <= _FARTHEST
    ]
    if len(pairs) > 1:
        raise ValueError(f"its hypercalls can't be told apart: {len(pairs)} places look like them")
    return sorted(site.address for pair in pairs for site in pair)


def _candidates(address: int, data: bytes | memoryview, alignment: int) -> Iterable[_Site]:
    for match in _SITE.finditer(data):
        start = match.start()
        begin = start - len(_ENDBR) if bytes(data[max(0, start - len(_ENDBR)) : start]) == _ENDBR else start
        if (address + begin) % alignment:
            continue
        target = None
        if match[2] is not None:
            (distance,) = struct.unpack("<i", match[2])
            target = address + start + len(_VMCALL) + _JUMP_LENGTH + distance
        yield _Site(address + start, b"\x0f\x01" + match[1], target)


def trap() -> bytes:
    """What is put in place of the instruction."""
    return _TRAP


def hypercall_page() -> bytes:
    """The page that a guest asks for: at 32 times its number, each hypercall's own instructions."""
    page = bytearray()
    for number in range(_PAGE_ENTRIES):
        # mov eax, number; out imm8, eax; ret. There is no iret for guests that have their own.
        code = b"\x0f\x0b" if number == _IRET else b"\xb8" + number.to_bytes(4, "little") + _TRAP[:2] + b"\xc3"
        page += code.ljust(PAGE_ENTRY_SIZE, b"\xcc")
    return bytes(page)

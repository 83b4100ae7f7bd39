"""Runs a filter of seccomp's as the kernel does, on a struct seccomp_data of one's own."""

from __future__ import annotations

import struct
from collections.abc import Sequence

_DATA = struct.Struct("<iIQ6Q")


def decide(program: bytes, arch: int, nr: int, arguments: Sequence[int] = ()) -> int:
    """The action (SECCOMP_RET_…) that an assembled ``program`` takes. Raises IndexError if it runs off its end."""
    data = _DATA.pack(nr, arch, 0, *arguments, *[0] * (6 - len(arguments)))
    code = list(struct.iter_unpack("=HBBI", program))
    accumulator = place = 0
    while True:
        opcode, jt, jf, k = code[place]
        place += 1
        match opcode:
            case 0x20:
                (accumulator,) = struct.unpack_from("<I", data, k)
            case 0x54:
                accumulator &= k
            case 0x15:
                place += jt if accumulator == k else jf
            case 0x06:
                assert isinstance(k, int)
                return k
            case _:
                raise AssertionError(f"the instruction {opcode:#x} is not in use here")

"""Filters in the classic BPF of seccomp: instructions, and the few shapes that a filter is made of.

A filter reads ``struct seccomp_data``: the call's number, the architecture, the instruction pointer and six arguments.
Every block that is made here ends by returning, so who jumps over it still has in the accumulator what it had before.
Layouts and numbers: linux/filter.h, linux/bpf_common.h, linux/seccomp.h.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS: the word at offset k
AND: Final = 0x54  # BPF_ALU | BPF_AND | BPF_K
JUMP_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K: jt instructions further, or jf
RETURN: Final = 0x06  # BPF_RET | BPF_K

NR: Final = 0
ARCH: Final = 4
_ARGUMENTS: Final = 16
ALL_BITS: Final = 0xFFFFFFFF
_FILTER: Final = struct.Struct("=HBBI")
LONGEST: Final = 4096
"""BPF_MAXINSNS"""


class Instruction(NamedTuple):
    """``struct sock_filter``."""

    code: int
    jt: int
    jf: int
    k: int


class Argument(NamedTuple):
    """A condition: argument ``number`` (0 to 5), as far as ``mask`` goes, is one of ``values``.

    Only the lower 32 bits are looked at, as the kernel itself does with the arguments that matter here (descriptors,
    ioctl requests, flags, protections).
    """

    number: int
    values: frozenset[int]
    mask: int = ALL_BITS


def load(offset: int) -> Instruction:
    """Put a word of struct seccomp_data into the accumulator."""
    return Instruction(LOAD, 0, 0, offset)


def give(action: int) -> Instruction:
    """End with ``action`` (SECCOMP_RET_…)."""
    return Instruction(RETURN, 0, 0, action)


def when(value: int, block: Sequence[Instruction]) -> list[Instruction]:
    """``block``, which returns, where the accumulator holds ``value``; else go on behind it."""
    return [Instruction(JUMP_EQUAL, 0, len(block), value), *block]


def check(arguments: Iterable[Argument], otherwise: int) -> list[Instruction]:
    """Go on where all conditions hold, else end with ``otherwise``."""
    program: list[Instruction] = []
    for number, values, mask in arguments:
        program.append(load(_ARGUMENTS + 8 * number))
        if mask != ALL_BITS:
            program.append(Instruction(AND, 0, 0, mask))
        left = len(values)
        for value in sorted(values):
            program.append(Instruction(JUMP_EQUAL, left, 0, value))
            left -= 1
        program.append(give(otherwise))
    return program


def assemble(program: Sequence[Instruction]) -> bytes:
    """An array of ``struct sock_filter``. Raises ValueError for a program that the kernel would not take."""
    if not 0 < len(program) <= LONGEST:
        raise ValueError(f"a filter of {len(program)} instructions")
    for place, (code, jt, jf, _) in enumerate(program):
        if code == JUMP_EQUAL and not (max(jt, jf) <= 255 and place + 1 + max(jt, jf) < len(program)):
            raise ValueError(f"instruction {place} jumps too far")
    if program[-1].code != RETURN:
        raise ValueError("the last instruction must return")
    return b"".join(_FILTER.pack(*each) for each in program)

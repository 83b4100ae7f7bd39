"""Guests of a few bytes that suspend themselves."""

from __future__ import annotations

import struct

from pyxen.abi import hypercall as nr
from pyxen.abi import sched
from tests.unit.hypervisor.builder.elves import LOAD_AT, NOTE_ENTRY, linux_like, note
from tests.unit.hypervisor.kvm.assembler import Program

_REASON = LOAD_AT + 0x1000
_RESULT = _REASON + 4
_LINES = _REASON + 8
_CONSOLE_WRITE = 0


def sleeper() -> bytes:
    """Suspends itself, prints what the hypercall has returned, and does it again, for ever."""
    program = Program(32)
    program.call(nr.SCHED_OP, sched.SHUTDOWN, _REASON, to=_RESULT)
    # mov eax, [result]; imul eax, 9; add eax, lines; mov edx, eax
    program.raw(f"a1{_RESULT.to_bytes(4, 'little').hex()} 6bc009 05{_LINES.to_bytes(4, 'little').hex()} 89c2")
    program.raw(f"bb{_CONSOLE_WRITE:02x}000000 b909000000 b8{nr.CONSOLE_IO.to_bytes(4, 'little').hex()}")
    program.raw(f"e7{program.code[program.code.index(0xE7) + 1]:02x}")
    # Each of these ends by itself after a while: time for whoever waits for it to run.
    for _ in range(25):
        program.call(nr.SCHED_OP, sched.BLOCK, 0)
    program.loop_to(0)
    data = struct.pack("<II", sched.SHUTDOWN_SUSPEND, 0) + b"restored\nresumed!\n"
    code = bytes(program.code).ljust(_REASON - LOAD_AT, b"\xf4") + data
    return linux_like(code, notes=note(NOTE_ENTRY, struct.pack("<I", LOAD_AT)))


def writer(rounds: int) -> bytes:
    """Prints a line, writes a number into a thousand pages ``rounds`` times, with pauses, and suspends itself.

    When it goes on it prints whether each page has what it wrote last, and waits for ever.
    """
    program = Program(32)
    _print(program, _LINES)
    program.raw("bd00000000")  # mov ebp, 0
    start = len(program.code)
    program.raw("45")  # inc ebp
    # mov edi, 4 MiB; mov ecx, 1024; mov [edi], ebp; add edi, 4096; dec ecx; jnz over three back
    program.raw("bf00004000 b900040000 892f 81c700100000 49 75f5")
    program.call(nr.SCHED_OP, sched.BLOCK, 0)
    program.raw(f"81fd{rounds.to_bytes(4, 'little').hex()} 7405")  # cmp ebp, rounds; je over the jump
    program.loop_to(start)
    program.call(nr.SCHED_OP, sched.SHUTDOWN, _REASON)
    # The same with cmp [edi], ebp; jne out of it
    program.raw("bf00004000 b900040000 392f 7509 81c700100000 49 75f3")
    program.raw("7418")  # je over the next print and its jump
    _print(program, _LINES + 18)
    program.raw("ebfe")
    _print(program, _LINES + 9)
    end = len(program.code)
    program.call(nr.SCHED_OP, sched.BLOCK, 0)
    program.loop_to(end)
    data = struct.pack("<II", sched.SHUTDOWN_SUSPEND, 0) + b"working!\nthe same\nchanged!\n"
    code = bytes(program.code).ljust(_REASON - LOAD_AT, b"\xf4") + data
    return linux_like(code, notes=note(NOTE_ENTRY, struct.pack("<I", LOAD_AT)))


def _print(program: Program, line: int) -> None:
    """Nine bytes, in as much code each time."""
    program.call(nr.CONSOLE_IO, _CONSOLE_WRITE, 9, line)

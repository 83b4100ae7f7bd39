"""A guest of a few bytes that suspends itself."""

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

"""A domain's memory and registers as an ELF core: for gdb and crash, in the form of QEMU's dump-guest-memory.

A PT_LOAD for each piece of memory, by guest-physical addresses, and for each VCPU two notes: ``NT_PRSTATUS`` (Linux,
struct elf_prstatus), which gdb shows as a thread, and ``QEMU`` (struct QEMUCPUState), whose control registers are what
crash finds the kernel's page tables by. Pages of zeros are holes in the file.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from pyxen.hypervisor.kvm import uapi
from pyxen.hypervisor.kvm.registers import Segment, SpecialRegisters
from pyxen.hypervisor.kvm.uapi import Register
from pyxen.hypervisor.memory import PAGE_SIZE, GuestMemory, Region

_ET_CORE: Final = 4
_PT_LOAD: Final = 1
_PT_NOTE: Final = 4
_NT_PRSTATUS: Final = 1
_HEADER: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT: Final = struct.Struct("<IIQQQQQQ")
_NOTE: Final = struct.Struct("<III")
_IDENT: Final = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
_CHUNK: Final = 64 * 1024
_ZEROS: Final = bytes(_CHUNK)

_R: Final = Register
_PR_REGISTERS: Final = (
    *(_R.R15, _R.R14, _R.R13, _R.R12, _R.RBP, _R.RBX, _R.R11, _R.R10),
    *(_R.R9, _R.R8, _R.RAX, _R.RCX, _R.RDX, _R.RSI, _R.RDI),
)
"""The beginning of Linux' struct user_regs_struct; orig_rax, rip, cs, eflags, rsp, ss, … follow."""
_PRSTATUS_SIZE: Final = 336
_PRSTATUS_PID: Final = 32
_PRSTATUS_REGISTERS: Final = 112

_QEMU_VERSION: Final = 1
_QEMU_SEGMENT: Final = struct.Struct("<IIIIQ")  # selector, limit, flags as in a descriptor, -, base
_QEMU_REGISTERS: Final = (
    *(_R.RAX, _R.RBX, _R.RCX, _R.RDX, _R.RSI, _R.RDI, _R.RSP, _R.RBP),
    *(_R.R8, _R.R9, _R.R10, _R.R11, _R.R12, _R.R13, _R.R14, _R.R15, _R.RIP, _R.RFLAGS),
)
_QEMU_SIZE: Final = 8 + 8 * len(_QEMU_REGISTERS) + 10 * _QEMU_SEGMENT.size + 5 * 8 + 8


@dataclass(frozen=True, slots=True)
class CpuState:
    """One VCPU: its number, ``struct kvm_regs`` as a row, and the rest."""

    number: int
    regs: Sequence[int]
    sregs: SpecialRegisters
    kernel_gs_base: int


def write(fd: int, memory: GuestMemory, cpus: Sequence[CpuState]) -> int:
    """Write a core to ``fd``, an empty file open for writing; returns its size in bytes, holes included.

    May run in a thread of its own, while the guest runs or not. Raises OSError.
    """
    pieces = list(_pieces(memory.regions))
    notes = b"".join(_notes(cpu) for cpu in cpus)
    first_note = _HEADER.size + _SEGMENT.size * (1 + len(pieces))
    offset = -(-(first_note + len(notes)) // PAGE_SIZE) * PAGE_SIZE
    segments = [_SEGMENT.pack(_PT_NOTE, 0, first_note, 0, 0, len(notes), len(notes), 4)]
    places: list[tuple[int, list[Region]]] = []
    for piece in pieces:
        size = piece[-1].end - piece[0].start
        segments.append(_SEGMENT.pack(_PT_LOAD, 0, offset, 0, piece[0].start, size, size, 0))
        places.append((offset, piece))
        offset += size
    header = _HEADER.pack(
        _IDENT, _ET_CORE, 62, 1, 0, _HEADER.size, 0, 0, _HEADER.size, _SEGMENT.size, len(segments), 0, 0, 0
    )
    os.ftruncate(fd, offset)
    _write(fd, b"".join([header, *segments, notes]), 0)
    for place, piece in places:
        for region in piece:
            _write_memory(fd, region.data, place + region.start - piece[0].start)
    return offset


def _pieces(regions: Iterable[Region]) -> Iterator[list[Region]]:
    """Regions that follow on each other, together: a guest may have thousands of single pages."""
    piece: list[Region] = []
    for region in sorted(regions, key=lambda each: each.start):
        if piece and piece[-1].end != region.start:
            yield piece
            piece = []
        piece.append(region)
    if piece:
        yield piece


def _write_memory(fd: int, data: memoryview, place: int) -> None:
    for start in range(0, len(data), _CHUNK):
        # Copied, so that what is looked at is what is written though the guest may be running.
        chunk = bytes(data[start : start + _CHUNK])
        if chunk != (_ZEROS if len(chunk) == _CHUNK else bytes(len(chunk))):
            _write(fd, chunk, place + start)


def _write(fd: int, data: bytes, place: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(fd, data[done:] if done else data, place + done)


def _notes(cpu: CpuState) -> bytes:
    return _note(b"CORE", _NT_PRSTATUS, _prstatus(cpu)) + _note(b"QEMU", 0, _qemu_state(cpu))


def _note(name: bytes, kind: int, contents: bytes) -> bytes:
    return _NOTE.pack(len(name) + 1, len(contents), kind) + _padded(name + b"\0") + _padded(contents)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _prstatus(cpu: CpuState) -> bytes:
    regs, segment = cpu.regs, cpu.sregs.segment
    row = [regs[register] for register in _PR_REGISTERS]
    row += [(1 << 64) - 1, regs[_R.RIP], segment("cs").selector, regs[_R.RFLAGS], regs[_R.RSP], segment("ss").selector]
    row += [segment("fs").base, segment("gs").base, *(segment(name).selector for name in ("ds", "es", "fs", "gs"))]
    status = bytearray(_PRSTATUS_SIZE)
    struct.pack_into("<I", status, _PRSTATUS_PID, cpu.number + 1)
    struct.pack_into(f"<{len(row)}Q", status, _PRSTATUS_REGISTERS, *row)
    return bytes(status)


def _qemu_state(cpu: CpuState) -> bytes:
    sregs = cpu.sregs
    parts = [
        struct.pack("<II", _QEMU_VERSION, _QEMU_SIZE),
        struct.pack(f"<{len(_QEMU_REGISTERS)}Q", *(cpu.regs[register] for register in _QEMU_REGISTERS)),
        *(_segment(sregs.segment(name)) for name in ("cs", "ds", "es", "fs", "gs", "ss", "ldt", "tr")),
        *(_table(sregs.data, place) for place in (uapi.SREGS_GDT, uapi.SREGS_IDT)),
        struct.pack("<5Q", sregs.cr0, 0, sregs.cr2, sregs.cr3, sregs.cr4),
        struct.pack("<Q", cpu.kernel_gs_base),
    ]
    return b"".join(parts)


def _segment(s: Segment) -> bytes:
    flags = s.type << 8 | s.s << 12 | s.dpl << 13 | s.present << 15 | s.avl << 20 | s.long << 21 | s.db << 22
    return _QEMU_SEGMENT.pack(s.selector, s.limit, flags | s.granular << 23, 0, s.base)


def _table(data: bytes | bytearray, place: int) -> bytes:
    base, limit = uapi.TABLE.unpack_from(data, place)
    return _QEMU_SEGMENT.pack(0, limit, 0, 0, base)

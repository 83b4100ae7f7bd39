"""Just enough ELF (System V ABI, chapter 5) for kernels: program headers, Xen's notes, and dropping the rest.

Everything raises ValueError with a reason.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

PT_LOAD: Final = 1
PT_NOTE: Final = 4
EM_386: Final = 3
EM_X86_64: Final = 62
XEN_PHYS32_ENTRY: Final = 18
"""Xen, public/elfnote.h: the physical address at which a PVH guest is entered in 32-bit mode."""

_MACHINES: Final = {2: "sparc", 8: "mips", 20: "ppc", 21: "ppc64", 22: "s390", 40: "arm", 183: "arm64", 243: "riscv"}
_HEADER = {32: struct.Struct("<16xHHIIIIIHHHHHH"), 64: struct.Struct("<16xHHIQQQIHHHHHH")}
_SEGMENT = {32: struct.Struct("<8I"), 64: struct.Struct("<IIQQQQQQ")}
_NOTE = struct.Struct("<III")
_PAGE = 4096
_MOST_SEGMENTS = 64
_ADDRESS_SPACE = 1 << 32  # a PVH guest starts in 32-bit mode: the kernel lies below 4 GiB


@dataclass(frozen=True, slots=True)
class Segment:
    type: int
    flags: int
    offset: int
    vaddr: int
    paddr: int
    filesz: int
    memsz: int
    align: int


@dataclass(frozen=True, slots=True)
class Elf:
    """The header of an x86 executable and its segments; the PT_LOAD ones lie within the file and below 4 GiB."""

    bits: int
    machine: int
    entry: int
    segments: tuple[Segment, ...]


def parse(data: bytes | memoryview) -> Elf:
    """Read and check the headers of a kernel's ELF file."""
    if len(data) < 20 or bytes(data[:4]) != b"\x7fELF":
        raise ValueError("it is not an ELF file")
    machine = int.from_bytes(data[18:20], "little")
    if data[5] != 1 or machine not in (EM_386, EM_X86_64):
        raise ValueError(f"it is for another machine ({_MACHINES.get(machine, f'ELF machine {machine}')}), not x86")
    if data[4] not in (1, 2):
        raise ValueError(f"its ELF class is {data[4]}, neither 32 nor 64 bits")
    bits = 32 * data[4]
    if len(data) < 16 + _HEADER[bits].size - 16:
        raise ValueError("its ELF header is cut off")
    fields = _HEADER[bits].unpack_from(data)
    kind, entry, phoff, phentsize, phnum = fields[0], fields[3], fields[4], fields[8], fields[9]
    if kind not in (2, 3):
        raise ValueError("it is an ELF file that can't be run (an object or a core file)")
    if phentsize != _SEGMENT[bits].size or not 0 < phnum <= _MOST_SEGMENTS:
        raise ValueError(f"its ELF header names {phnum} segments of {phentsize} bytes")
    if phoff + phnum * phentsize > len(data):
        raise ValueError("its program headers are cut off")
    segments = tuple(_segment(bits, data, phoff + index * phentsize) for index in range(phnum))
    _check(segments, len(data))
    return Elf(bits, machine, entry, segments)


def _segment(bits: int, data: bytes | memoryview, position: int) -> Segment:
    fields = _SEGMENT[bits].unpack_from(data, position)
    if bits == 64:
        kind, flags, offset, vaddr, paddr, filesz, memsz, align = fields
    else:
        kind, offset, vaddr, paddr, filesz, memsz, flags, align = fields
    return Segment(kind, flags, offset, vaddr, paddr, filesz, memsz, align)


def _check(segments: tuple[Segment, ...], size: int) -> None:
    loaded = [segment for segment in segments if segment.type == PT_LOAD]
    if not loaded:
        raise ValueError("it has no segment to load")
    for segment in segments:
        if segment.type in (PT_LOAD, PT_NOTE) and segment.offset + segment.filesz > size:
            raise ValueError(f"it is cut off: a segment ends at {segment.offset + segment.filesz}, the data at {size}")
    for segment in loaded:
        if segment.filesz > segment.memsz or segment.paddr + segment.memsz > _ADDRESS_SPACE:
            raise ValueError(f"a segment of {segment.memsz} bytes at {segment.paddr:#x} can't be loaded")
    if sum(segment.filesz for segment in loaded) > size:
        raise ValueError("its segments overlap in the file")


def notes(elf: Elf, data: bytes | memoryview) -> Iterator[tuple[bytes, int, bytes]]:
    """The (name, type, contents) of each ELF note; reading ends at the first that does not fit its segment."""
    for segment in elf.segments:
        if segment.type != PT_NOTE:
            continue
        position, end = segment.offset, segment.offset + segment.filesz
        while position + _NOTE.size <= end:
            name_size, size, kind = _NOTE.unpack_from(data, position)
            name = position + _NOTE.size
            contents = name + _align(name_size, 4)
            position = contents + _align(size, 4)
            if contents + size > end:
                break
            yield bytes(data[name : name + name_size]).rstrip(b"\x00"), kind, bytes(data[contents : contents + size])


def pvh_entry(elf: Elf, data: bytes | memoryview) -> int | None:
    """Where a PVH guest is entered (guest-physical), or None if this kernel has no such entry."""
    for name, kind, contents in notes(elf, data):
        if name == b"Xen" and kind == XEN_PHYS32_ENTRY and len(contents) in (4, 8):
            entry = int.from_bytes(contents, "little")
            if not any(s.type == PT_LOAD and s.paddr <= entry < s.paddr + s.memsz for s in elf.segments):
                raise ValueError(f"its PVH entry {entry:#x} lies outside of what is loaded")
            return entry
    return None


def loadable(elf: Elf, data: bytes | memoryview) -> list[bytes | memoryview]:
    """The pieces of a smaller ELF file with the PT_LOAD and PT_NOTE segments alone: no sections, no symbols.

    Zeros at a segment's end are left out too, as the loader clears what the file does not fill.
    Each segment keeps its file offset's place in a page, so that the file can be mapped.
    """
    view = memoryview(data)
    kept = [segment for segment in elf.segments if segment.type in (PT_LOAD, PT_NOTE)]
    end = _HEADER[elf.bits].size + len(kept) * _SEGMENT[elf.bits].size
    pieces: list[bytes | memoryview] = []
    placed: list[Segment] = []
    for segment in kept:
        inside = next((index for index, other in enumerate(kept[: len(placed)]) if _holds(other, segment)), None)
        if segment.type == PT_NOTE and inside is not None:
            placed.append(replace(segment, offset=placed[inside].offset + segment.offset - kept[inside].offset))
            continue
        start = _align(end, _PAGE) + segment.offset % _PAGE
        content = view[segment.offset : segment.offset + segment.filesz]
        if segment.type == PT_LOAD:
            notes_end = max((s.offset + s.filesz for s in kept if s.type == PT_NOTE and _holds(segment, s)), default=0)
            content = content[: max(len(bytes(content).rstrip(b"\x00")), notes_end - segment.offset)]
        pieces += [bytes(start - end), content]
        end = start + len(content)
        placed.append(replace(segment, offset=start, filesz=len(content)))
    return [_header(elf, placed), *pieces]


def _holds(outer: Segment, inner: Segment) -> bool:
    return (
        outer.type == PT_LOAD
        and outer.offset <= inner.offset
        and inner.offset + inner.filesz <= outer.offset + outer.filesz
    )


def _header(elf: Elf, segments: list[Segment]) -> bytes:
    size = _HEADER[elf.bits].size
    ident = b"\x7fELF" + bytes([elf.bits // 32, 1, 1])
    fields = (2, elf.machine, 1, elf.entry, size, 0, 0, size, _SEGMENT[elf.bits].size, len(segments), 0, 0, 0)
    header = bytearray(_HEADER[elf.bits].pack(*fields))
    header[: len(ident)] = ident
    for s in segments:
        if elf.bits == 64:
            row = (s.type, s.flags, s.offset, s.vaddr, s.paddr, s.filesz, s.memsz, s.align)
        else:
            row = (s.type, s.offset, s.vaddr, s.paddr, s.filesz, s.memsz, s.flags, s.align)
        header += _SEGMENT[elf.bits].pack(*row)
    return bytes(header)


def _align(value: int, to: int) -> int:
    return (value + to - 1) // to * to

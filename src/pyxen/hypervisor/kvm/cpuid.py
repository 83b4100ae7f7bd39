"""CPUID leaves as KVM takes and gives them: ``struct kvm_cpuid2``."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from pyxen.hypervisor.kvm.uapi import CPUID_ENTRY

MOST_ENTRIES: Final = 256
_HEADER: Final = struct.Struct("<II")


@dataclass(frozen=True, slots=True)
class CpuidEntry:
    """What CPUID answers for one leaf. ``index`` is ECX, which counts where ``flags`` has bit 0."""

    function: int
    index: int
    flags: int
    eax: int
    ebx: int
    ecx: int
    edx: int


def pack(entries: Iterable[CpuidEntry]) -> bytearray:
    """``struct kvm_cpuid2`` of these entries."""
    rows = [(e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx) for e in entries]
    return bytearray(_HEADER.pack(len(rows), 0) + b"".join(CPUID_ENTRY.pack(*row) for row in rows))


def room() -> bytearray:
    """An empty ``struct kvm_cpuid2`` for KVM to fill."""
    return bytearray(_HEADER.pack(MOST_ENTRIES, 0) + bytes(MOST_ENTRIES * CPUID_ENTRY.size))


def unpack(buffer: bytearray) -> list[CpuidEntry]:
    """The entries of a ``struct kvm_cpuid2``."""
    count, _ = _HEADER.unpack_from(buffer)
    return [CpuidEntry(*CPUID_ENTRY.unpack_from(buffer, _HEADER.size + n * CPUID_ENTRY.size)) for n in range(count)]

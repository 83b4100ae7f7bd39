"""Segments and control registers: ``struct kvm_sregs`` by names."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from pyxen.hypervisor.kvm import uapi

_U64: Final = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment register with what the CPU has cached of its descriptor; ``limit`` is in bytes."""

    base: int = 0
    limit: int = 0xFFFFFFFF
    selector: int = 0
    type: int = 3
    present: int = 1
    dpl: int = 0
    db: int = 0
    s: int = 1
    long: int = 0
    granular: int = 0
    avl: int = 0
    unusable: int = 0


class SpecialRegisters:
    """A copy of a VCPU's ``struct kvm_sregs`` that can be changed and set."""

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self.data = bytearray(data)
        if len(self.data) != uapi.SREGS_SIZE:
            raise ValueError(f"struct kvm_sregs has {uapi.SREGS_SIZE} bytes, not {len(self.data)}")

    def segment(self, name: str) -> Segment:
        """``name`` is cs, ds, es, fs, gs, ss, tr or ldt."""
        return Segment(*uapi.SEGMENT.unpack_from(self.data, _place(name)))

    def set_segment(self, name: str, s: Segment) -> None:
        row = (s.base, s.limit, s.selector, s.type, s.present, s.dpl, s.db, s.s, s.long, s.granular, s.avl, s.unusable)
        uapi.SEGMENT.pack_into(self.data, _place(name), *row)

    def set_tables(self, *, gdt: tuple[int, int], idt: tuple[int, int]) -> None:
        """Base and limit of each."""
        uapi.TABLE.pack_into(self.data, uapi.SREGS_GDT, *gdt)
        uapi.TABLE.pack_into(self.data, uapi.SREGS_IDT, *idt)

    @property
    def cr0(self) -> int:
        return self._get(uapi.SREGS_CR0)

    @cr0.setter
    def cr0(self, value: int) -> None:
        self._set(uapi.SREGS_CR0, value)

    @property
    def cr2(self) -> int:
        return self._get(uapi.SREGS_CR2)

    @property
    def cr3(self) -> int:
        return self._get(uapi.SREGS_CR3)

    @cr3.setter
    def cr3(self, value: int) -> None:
        self._set(uapi.SREGS_CR3, value)

    @property
    def cr4(self) -> int:
        return self._get(uapi.SREGS_CR4)

    @cr4.setter
    def cr4(self, value: int) -> None:
        self._set(uapi.SREGS_CR4, value)

    @property
    def efer(self) -> int:
        return self._get(uapi.SREGS_EFER)

    @efer.setter
    def efer(self, value: int) -> None:
        self._set(uapi.SREGS_EFER, value)

    def _get(self, place: int) -> int:
        value: int = _U64.unpack_from(self.data, place)[0]
        return value

    def _set(self, place: int, value: int) -> None:
        _U64.pack_into(self.data, place, value)


def _place(name: str) -> int:
    return uapi.SREGS_SEGMENTS.index(name) * uapi.SEGMENT.size

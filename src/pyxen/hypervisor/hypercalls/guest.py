"""Reading and writing the caller's memory by virtual address. Every failure is BadAddress (-EFAULT)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from pyxen.abi.layout import Layout
from pyxen.abi.shared_info import PAGE_SIZE

if TYPE_CHECKING:
    from pyxen.hypervisor.vcpu import Vcpu

T = TypeVar("T")

_OFFSET = PAGE_SIZE - 1
_LAST = (1 << 64) - 1


def pieces(vcpu: Vcpu, address: int, length: int, *, place: Callable[[int, int], memoryview]) -> list[memoryview]:
    """The guest's own bytes, page by page; ``place`` is what GuestMemory has for what is to be done with them."""
    domain = vcpu.domain
    write = place != domain.memory.look
    found = []
    while length > 0:
        part = min(length, PAGE_SIZE - (address & _OFFSET))
        gpa = domain.machine.translate(vcpu.index, address & _LAST, write=write)
        found.append(place(gpa, part))
        address += part
        length -= part
    return found


def read(vcpu: Vcpu, address: int, length: int) -> bytes | memoryview:
    """``length`` bytes. Copy what is used more than once: the guest may change it meanwhile."""
    domain = vcpu.domain
    if 0 < length <= PAGE_SIZE - (address & _OFFSET):
        return domain.memory.look(domain.machine.translate(vcpu.index, address & _LAST, write=False), length)
    return b"".join(pieces(vcpu, address, length, place=domain.memory.look))


def u32(vcpu: Vcpu, address: int) -> int:
    """One number, read once."""
    if address & _OFFSET > PAGE_SIZE - 4:
        return int.from_bytes(read(vcpu, address, 4), "little")
    domain = vcpu.domain
    return domain.memory.u32(domain.machine.translate(vcpu.index, address & _LAST, write=False))


def write(vcpu: Vcpu, address: int, data: bytes) -> None:
    """Store ``data``: all of it, or nothing."""
    offset = 0
    for piece in pieces(vcpu, address, len(data), place=vcpu.domain.memory.view):
        piece[:] = data[offset : offset + len(piece)]
        offset += len(piece)


def get(vcpu: Vcpu, layout: Layout[T], address: int, bits: int) -> T:
    """A structure, read once."""
    return layout.unpack(read(vcpu, address, layout.size(bits)), bits)


def put(vcpu: Vcpu, layout: Layout[T], address: int, bits: int, field: str, value: int) -> None:
    """One field of a structure at ``address``."""
    write(vcpu, address + layout.offset(bits, field), layout.pack_field(field, value, bits))

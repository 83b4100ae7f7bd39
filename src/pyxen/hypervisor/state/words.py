"""What the sections of a saved state hold, but for memory: MessagePack of these.

A restored domain is a new one, with new event channels, grants and xenstore, to which its guest connects again (as with
Xen, see docs/decisions/0012): so none of those is here.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec

from pyxen.hypervisor.state.sections import damaged

T = TypeVar("T")
Word = Annotated[int, msgspec.Meta(ge=0)]
"""MessagePack has no whole numbers above 64 bits."""
Half = Annotated[int, msgspec.Meta(ge=0, le=0xFFFFFFFF)]


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """What a reader's domain must have, to be given the rest."""

    vcpus: int
    regions: list[tuple[Word, Word]]
    """(address, bytes) of the pieces of memory that a domain has from its start."""
    tsc_khz: Word = 0
    """How fast its time stamp counters run; 0: not told so early."""


class Frames(msgspec.Struct, frozen=True, kw_only=True):
    """Pages outside of those regions, which the guest has had Xen make."""

    gfns: list[Word]


class Cpu(msgspec.Struct, frozen=True, kw_only=True):
    """One VCPU. The bytes are KVM's structures (linux: asm/kvm.h): kvm_regs, kvm_sregs, kvm_xsave, …"""

    index: int
    up: bool
    held: bool
    """Taken down by VCPUOP_down."""
    cpuid: list[tuple[Half, Half, Half, Half, Half, Half, Half]]
    """Rows of kvm.CpuidEntry."""
    regs: bytes
    sregs: bytes
    xsave: bytes
    xcrs: bytes
    debug: bytes
    lapic: bytes
    events: bytes
    mp_state: Half
    msrs: list[tuple[Half, Word]]
    tsc: Word
    """Its time stamp counter at ``Xen.system_time``."""


class Xen(msgspec.Struct, frozen=True, kw_only=True):
    """The rest of the domain."""

    system_time: Word
    """In nanoseconds; goes on from here."""
    tsc_khz: Word
    params: dict[int, Word]
    """The HVM parameters that are the guest's own to set."""
    initialised: list[bool]
    """VCPUs that VCPUOP_up may bring up."""
    runstate_update_flag: bool
    absent: list[bytes]
    """For each range of RAM a bit for each page: given back."""
    maximum: int
    """Pages that the domain may have."""
    ports: Word = 0
    """Event channels had lower numbers than this."""


def pack(value: msgspec.Struct) -> bytes:
    return msgspec.msgpack.encode(value)


def unpack(data: bytes, kind: type[T]) -> T:
    """Raises InvalidRequest."""
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise damaged(str(error)) from error

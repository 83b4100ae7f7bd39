"""Structures as tables: a NamedTuple's annotations say what lies in guest memory, for 64-bit and 32-bit callers.

    class Poll(NamedTuple):
        ports: Pointer
        nr_ports: U32
        timeout: U64

    POLL = Layout(Poll)
    POLL.size(64), POLL.offset(32, "timeout"), POLL.unpack(view, 64).nr_ports

Fields lie as a C compiler would put them: each at a multiple of its alignment. On i386 that is at most 4, also for
64-bit numbers, but for those that Xen's headers declare as aligned (``U64Aligned``).
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable
from typing import Annotated, Final, Generic, NamedTuple, TypeVar, get_args, get_type_hints


class Kind(NamedTuple):
    """How one field is stored: struct's format letter (None: a byte string), its size and its alignment by mode."""

    size: int
    align64: int
    align32: int
    format64: str
    format32: str
    size32: int


def _number(letter: str, size: int, align32: int | None = None) -> Kind:
    return Kind(size, size, align32 or min(size, 4), letter, letter, size)


_WORD: Final = Kind(8, 8, 4, "Q", "I", 4)

U8 = Annotated[int, _number("B", 1)]
U16 = Annotated[int, _number("H", 2)]
U32 = Annotated[int, _number("I", 4)]
U64 = Annotated[int, _number("Q", 8)]
I8 = Annotated[int, _number("b", 1)]
I16 = Annotated[int, _number("h", 2)]
I32 = Annotated[int, _number("i", 4)]
U64Aligned = Annotated[int, _number("Q", 8, 8)]
ULong = Annotated[int, _WORD]
"""unsigned long: 8 bytes for 64-bit callers, 4 for others."""
Pointer = Annotated[int, _WORD]
"""A guest-virtual address, as wide as the caller's."""


def byte_string(length: int) -> Kind:
    """A field of ``length`` raw bytes: ``Annotated[bytes, byte_string(16)]``."""
    return Kind(length, 1, 1, f"{length}s", f"{length}s", length)


T = TypeVar("T")


class _Mode:
    """A structure in one of the two modes."""

    def __init__(self, fields: dict[str, Kind], bits: int) -> None:
        self.offsets: dict[str, int] = {}
        self.fields: dict[str, struct.Struct] = {}
        # "=" has no padding of its own; CPython still stores aligned numbers in one piece on little-endian hosts.
        layout = "="
        end = 0
        largest = 1
        for name, kind in fields.items():
            align = kind.align64 if bits == 64 else kind.align32
            letter = kind.format64 if bits == 64 else kind.format32
            start = -(-end // align) * align
            layout += f"{start - end}x{letter}" if start > end else letter
            self.offsets[name] = start
            self.fields[name] = struct.Struct("=" + letter)
            end = start + (kind.size if bits == 64 else kind.size32)
            largest = max(largest, align)
        self.size = -(-end // largest) * largest
        self.struct = struct.Struct(layout + f"{self.size - end}x" if self.size > end else layout)


class Layout(Generic[T]):
    """Where the fields of ``cls``, a NamedTuple, lie. ``bits`` is 64 or 32 everywhere."""

    def __init__(self, cls: type[T]) -> None:
        self.name = cls.__name__
        self._make: Callable[..., T] = cls

    # Worked out when first asked for: there are some fifty structures, a domain's start needs a few of them, and to
    # make sense of all their annotations took a third of the time that its process needs to load.

    @functools.cached_property
    def _kinds(self) -> dict[str, Kind]:
        kinds: dict[str, Kind] = {}
        for name, hint in get_type_hints(self._make, include_extras=True).items():
            kind = next((extra for extra in get_args(hint) if isinstance(extra, Kind)), None)
            if kind is None:
                raise TypeError(f"{self.name}.{name} does not say how it is stored")
            kinds[name] = kind
        return kinds

    @functools.cached_property
    def _modes(self) -> dict[int, _Mode]:
        return {64: _Mode(self._kinds, 64), 32: _Mode(self._kinds, 32)}

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """Of the fields, in order."""
        return tuple(self._kinds)

    @functools.cached_property
    def size64(self) -> int:
        """In bytes, for 64-bit callers."""
        return self._modes[64].size

    def size(self, bits: int) -> int:
        """In bytes, padding at the end included."""
        return self._modes[bits].size

    def offset(self, bits: int, field: str) -> int:
        return self._modes[bits].offsets[field]

    def width(self, bits: int, field: str) -> int:
        """The field's own size in bytes."""
        return self._modes[bits].fields[field].size

    def unpack(self, data: bytes | bytearray | memoryview, bits: int, at: int = 0) -> T:
        """The structure at ``at`` of ``data``, copied once."""
        return self._make(*self._modes[bits].struct.unpack_from(data, at))

    def pack(self, value: tuple[object, ...], bits: int) -> bytes:
        """``value``, one of ``cls``, as it lies in memory; padding is zero."""
        return self._modes[bits].struct.pack(*value)

    def pack_field(self, field: str, value: int, bits: int) -> bytes:
        """One field as it lies in memory."""
        return self._modes[bits].fields[field].pack(value)

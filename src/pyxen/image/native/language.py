"""What a compiled program can do besides computing: memory and system calls.

All values are 64-bit integers with a sign. These functions exist for the compiler and for type checkers; Python itself
can't run them.
"""

from __future__ import annotations

from typing import NoReturn


class Static(int):
    """Zeroed memory that the program has from its start: to Python its size, to the program its address."""

    # Two of the same size are two.
    __hash__ = object.__hash__
    __eq__ = object.__eq__


def static(size: int) -> int:
    """Memory of ``size`` bytes, for a global name."""
    return Static(size)


def text(data: bytes) -> int:
    """The address of constant bytes and a zero byte after them."""
    _only_compiled(data)


def load8(address: int) -> int:
    _only_compiled(address)


def load16(address: int) -> int:
    _only_compiled(address)


def load32(address: int) -> int:
    _only_compiled(address)


def load64(address: int) -> int:
    _only_compiled(address)


def store8(address: int, value: int) -> None:
    _only_compiled(address)


def store16(address: int, value: int) -> None:
    _only_compiled(address)


def store32(address: int, value: int) -> None:
    _only_compiled(address)


def store64(address: int, value: int) -> None:
    _only_compiled(address)


def copy(to: int, source: int, count: int) -> None:
    """Move bytes to a lower address, or to where they don't overlap."""
    _only_compiled(to)


def syscall(number: int, a: int = 0, b: int = 0, c: int = 0, d: int = 0, e: int = 0, f: int = 0) -> int:
    """Linux' answer: negative for an error's number."""
    _only_compiled(number)


def _only_compiled(value: object) -> NoReturn:
    raise NotImplementedError("only a compiled program can do that")

"""Locked operations on memory that the guest's CPUs change at the same time.

Python has none, and a lost bit in an event word is a guest that sleeps for ever. So each operation here is the one
x86 instruction it needs, as a function (machine_code). :class:`SharedPage` is a page of guest memory with the
operations on it.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any, Final

from pyxen.hypervisor import machine_code

# System V calling convention: rdi is an address, rsi and rdx are numbers, eax is the answer.
_CODE: Final = {
    # lock bts %rsi,(%rdi); setc %al; movzbl %al,%eax; ret    (bit rsi of a string of 64-bit words)
    "test_and_set": "f0480fab37 0f92c0 0fb6c0 c3",
    # lock btr %rsi,(%rdi); setc %al; movzbl %al,%eax; ret
    "test_and_clear": "f0480fb337 0f92c0 0fb6c0 c3",
    # lock bts %esi,(%rdi): the same in 32-bit words
    "test_and_set32": "f00fab37 0f92c0 0fb6c0 c3",
    "test_and_clear32": "f00fb337 0f92c0 0fb6c0 c3",
    # mov %esi,%eax; lock cmpxchg %edx,(%rdi); ret
    "compare_exchange32": "89f0 f00fb117 c3",
    # mov %esi,%eax; xchg %al,(%rdi); movzbl %al,%eax; ret
    "exchange8": "89f0 8607 0fb6c0 c3",
    # mov %esi,%eax; lock or %ax,(%rdi); ret
    "or16": "89f0 66f00907 c3",
    # mov %esi,%eax; lock and %ax,(%rdi); ret
    "and16": "89f0 66f02107 c3",
}


@functools.cache
def _operations() -> dict[str, Any]:
    kinds = {name: ctypes.PYFUNCTYPE(ctypes.c_uint, ctypes.c_size_t, ctypes.c_size_t) for name in _CODE}
    kinds["compare_exchange32"] = ctypes.PYFUNCTYPE(ctypes.c_uint, ctypes.c_size_t, ctypes.c_uint, ctypes.c_uint)
    return {name: kinds[name](address) for name, address in machine_code.load(_CODE).items()}


class SharedPage:
    """Memory shared with the guest, as bytes and as aligned 32-bit words, with locked operations on both.

    ``view`` must be writable and stay where it is; offsets are in bytes, bit numbers count from the offset's word.
    The caller checks offsets: nothing is checked again here.
    """

    __slots__ = (
        "_and16",
        "_clear",
        "_clear32",
        "_cmpxchg32",
        "_exchange8",
        "_or16",
        "_set",
        "_set32",
        "address",
        "u16",
        "u32",
        "u64",
        "view",
    )

    def __init__(self, view: memoryview) -> None:
        operations = _operations()
        self.view = view
        self.u16 = view.cast("H")
        self.u32 = view.cast("I")
        self.u64 = view.cast("Q")
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(view))
        self._set = operations["test_and_set"]
        self._clear = operations["test_and_clear"]
        self._set32 = operations["test_and_set32"]
        self._clear32 = operations["test_and_clear32"]
        self._cmpxchg32 = operations["compare_exchange32"]
        self._exchange8 = operations["exchange8"]
        self._or16 = operations["or16"]
        self._and16 = operations["and16"]

    def test_and_set(self, offset: int, bit: int) -> int:
        """Set ``bit`` of the 64-bit words from ``offset`` on; what it was."""
        result: int = self._set(self.address + offset, bit)
        return result

    def test_and_clear(self, offset: int, bit: int) -> int:
        """Clear ``bit`` of the 64-bit words from ``offset`` on; what it was."""
        result: int = self._clear(self.address + offset, bit)
        return result

    def test_and_set32(self, offset: int, bit: int) -> int:
        """Set ``bit`` of the 32-bit words from ``offset`` on; what it was."""
        result: int = self._set32(self.address + offset, bit)
        return result

    def test_and_clear32(self, offset: int, bit: int) -> int:
        """Clear ``bit`` of the 32-bit words from ``offset`` on; what it was."""
        result: int = self._clear32(self.address + offset, bit)
        return result

    def compare_exchange32(self, offset: int, expected: int, new: int) -> int:
        """Store ``new`` if ``expected`` is there; what was there."""
        result: int = self._cmpxchg32(self.address + offset, expected, new)
        return result

    def exchange8(self, offset: int, value: int) -> int:
        """Store a byte; what was there."""
        result: int = self._exchange8(self.address + offset, value)
        return result

    def or16(self, offset: int, mask: int) -> None:
        """Set the bits of ``mask`` in a 16-bit word."""
        self._or16(self.address + offset, mask)

    def and16(self, offset: int, mask: int) -> None:
        """Clear the bits that are not in ``mask`` in a 16-bit word."""
        self._and16(self.address + offset, mask)

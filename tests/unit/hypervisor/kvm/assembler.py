"""Machine code for guests of a few hundred bytes, put together instruction by instruction."""

from __future__ import annotations

from pyxen.hypervisor.builder.hypercall_sites import PORT

_OUT = bytes([0xE7, PORT])
# mov rdi / rsi / rdx / r10 / r8, imm64 and mov ebx / ecx / edx / esi / edi, imm32
_ARGUMENTS = {64: ("48bf", "48be", "48ba", "49ba", "49b8"), 32: ("bb", "b9", "ba", "be", "bf")}


class Program:
    """Code for 64-bit or 32-bit mode, without interrupts. Addresses are physical and below 4 GiB.

    ``raw`` takes any other instruction, in hexadecimal.
    """

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.code = bytearray()

    def raw(self, code: str) -> None:
        self.code += bytes.fromhex(code)

    def call(self, number: int, *args: int, to: int | None = None) -> None:
        """Make a hypercall as Xen's ABI has it; the whole result register is stored at ``to``."""
        width = self.bits // 8
        for prefix, value in zip(_ARGUMENTS[self.bits], args, strict=False):
            self.raw(prefix)
            self.code += (value & (1 << self.bits) - 1).to_bytes(width, "little")
        self.raw("b8")
        self.code += number.to_bytes(4, "little") + _OUT
        if to is not None:
            self.raw("48a3" if self.bits == 64 else "a3")
            self._address(to)

    def store(self, address: int, value: int) -> None:
        """Write 32 bits to memory, or to a device."""
        self.raw("b8")
        self.code += value.to_bytes(4, "little")
        self.raw("a3")
        self._address(address)

    def copy(self, source: int, destination: int) -> None:
        """Move 32 bits from one place to another."""
        self.raw("a1")
        self._address(source)
        self.raw("a3")
        self._address(destination)

    def loop_to(self, position: int) -> None:
        """Jump back to where ``len(code)`` was ``position``."""
        self.raw("e9")
        self.code += (position - len(self.code) - 4).to_bytes(4, "little", signed=True)

    def _address(self, address: int) -> None:
        self.code += address.to_bytes(self.bits // 8, "little")

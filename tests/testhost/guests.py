"""Guests of a few hundred bytes, as kernels that xm takes: one that counts, one that crashes, one that is hostile."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from pyxen.abi import event_channel, memory, sched, xs_wire
from pyxen.abi import hypercall as nr
from pyxen.abi.shared_info import DOMID_SELF
from pyxen.hypervisor.builder import layout
from tests.unit.hypervisor.builder.elves import LOAD_AT, NOTE_ENTRY, linux_like, note
from tests.unit.hypervisor.kvm.assembler import Program

PAGE = 4096
LINE = b"counting on\n"
_DATA = LOAD_AT + 0x1000
_TABLE, _RING, _SHARED_INFO = 0x300000, 0x301000, 0x302000
_REF = 8
_CONSOLE_PORT, _STORE_PORT, _VBD_PORT = 1, 2, 3
_XVDA = 51712


class _Kernel:
    """A program and the data that it points to, all loaded at LOAD_AT."""

    def __init__(self) -> None:
        self.program = Program(32)
        self._data = bytearray()

    def put(self, data: bytes) -> int:
        address = _DATA + len(self._data)
        self._data += data.ljust(-(-len(data) // 8) * 8, b"\0")
        return address

    def elf(self) -> bytes:
        code = bytes(self.program.code).ljust(_DATA - LOAD_AT, b"\xf4") + bytes(self._data)
        return linux_like(code, notes=note(NOTE_ENTRY, struct.pack("<I", LOAD_AT)))


def counter() -> bytes:
    """Prints LINE for ever, with a pause."""
    kernel = _Kernel()
    line = kernel.put(LINE)
    start = len(kernel.program.code)
    kernel.program.call(nr.CONSOLE_IO, nr.CONSOLE_WRITE, len(LINE), line)
    # SCHEDOP_block ends by itself after some hundredths of a second.
    for _ in range(5):
        kernel.program.call(nr.SCHED_OP, sched.BLOCK, 0)
    kernel.program.loop_to(start)
    return kernel.elf()


def crasher() -> bytes:
    """Says that it has crashed as soon as it runs."""
    kernel = _Kernel()
    reason = kernel.put(struct.pack("<I", sched.SHUTDOWN_CRASH))
    kernel.program.call(nr.SCHED_OP, sched.SHUTDOWN, reason)
    kernel.program.raw("ebfe")
    return kernel.elf()


def hostile() -> bytes:
    """Connects to its disk as it should, writes garbage over every ring it has, and does it all again, for ever."""
    kernel = _Kernel()
    program = kernel.program
    for space, address in ((memory.SPACE_GRANT_TABLE, _TABLE), (memory.SPACE_SHARED_INFO, _SHARED_INFO)):
        place = memory.AddToPhysmap(DOMID_SELF, 0, space, 0, address // PAGE)
        program.call(nr.MEMORY_OP, memory.ADD_TO_PHYSMAP, kernel.put(memory.ADD_TO_PHYSMAP_ARG.pack(place, 32)))
    unbound = event_channel.AllocUnbound(DOMID_SELF, 0, 0)
    offer = kernel.put(event_channel.ALLOC_UNBOUND_ARG.pack(unbound, 32))
    program.call(nr.EVENT_CHANNEL_OP, event_channel.ALLOC_UNBOUND, offer)
    ports = {port: kernel.put(struct.pack("<I", port)) for port in (_CONSOLE_PORT, _STORE_PORT, _VBD_PORT)}
    begin = kernel.put(_messages({"state": 1}))
    keys: dict[str, str | int] = {"ring-ref": _REF, "event-channel": _VBD_PORT, "protocol": "x86_32-abi", "state": 3}
    connect = kernel.put(_messages(keys))
    program.raw("bd78563412")  # mov ebp, 0x12345678
    start = len(program.code)
    for place_at, length in ((begin, len(_messages({"state": 1}))), (connect, len(_messages(keys)))):
        program.store(_TABLE + 8 * _REF + 4, _RING // PAGE)
        program.store(_TABLE + 8 * _REF, 1)
        _say(program, place_at, length, ports[_STORE_PORT])
        _pause(program)
    program.raw("bf20000000")  # mov edi, 32
    rounds = len(program.code)
    _garbage(program, _RING, PAGE)
    program.copy(_RING + 8, _RING)  # as many requests as answers, and 9 more
    program.raw(f"8305{_RING.to_bytes(4, 'little').hex()}09")
    _send(program, ports[_VBD_PORT])
    _garbage(program, layout.CONSOLE_GFN * PAGE, PAGE)
    _send(program, ports[_CONSOLE_PORT])
    _garbage(program, layout.XENSTORE_GFN * PAGE, 2048)
    _send(program, ports[_STORE_PORT])
    program.raw("4f 7405")  # dec edi; jz over the jump back
    program.loop_to(rounds)
    _garbage(program, _TABLE + 1024, 1024)
    # A new start for the store's ring, or nobody listens there any more.
    program.store(layout.XENSTORE_GFN * PAGE + xs_wire.CONNECTION, xs_wire.RECONNECT)
    _send(program, ports[_STORE_PORT])
    _pause(program)
    program.loop_to(start)
    return kernel.elf()


def _messages(values: Mapping[str, str | int]) -> bytes:
    """The front end's keys of the disk xvda, as WRITE messages."""
    out = b""
    for key, value in values.items():
        payload = f"device/vbd/{_XVDA}/{key}".encode() + b"\0" + str(value).encode()
        out += xs_wire.HEADER.pack(xs_wire.Op.WRITE, 1, 0, len(payload)) + payload
    return out


def _say(program: Program, source: int, length: int, port: int) -> None:
    """Put messages at the start of the store's ring, which is taken to be empty."""
    page = layout.XENSTORE_GFN * PAGE
    program.store(page + xs_wire.CONNECTION, xs_wire.RECONNECT)
    _send(program, port)
    _pause(program)
    program.raw(f"be{source.to_bytes(4, 'little').hex()}")  # mov esi, source
    program.raw(f"bf{page.to_bytes(4, 'little').hex()}")  # mov edi, page
    program.raw(f"b9{length.to_bytes(4, 'little').hex()} fc f3a4")  # mov ecx, length; cld; rep movsb
    program.store(page + xs_wire.REQ_PROD, length)
    _send(program, port)


def _send(program: Program, port: int) -> None:
    program.call(nr.EVENT_CHANNEL_OP, event_channel.SEND, port)


def _pause(program: Program) -> None:
    """Give the host some hundredths of a second."""
    for _ in range(3):
        # Nobody takes events here, and with one pending there is no wait.
        program.store(_SHARED_INFO, 0)
        program.call(nr.SCHED_OP, sched.BLOCK, 0)


def _garbage(program: Program, address: int, size: int) -> None:
    """Sixty-four words at random places of a page, from a generator whose state is EBP."""
    mask = (size - 4).to_bytes(4, "little").hex()
    program.raw("b940000000")  # mov ecx, 64
    start = len(program.code)
    program.raw("69ed0d661900 81c55ff36e3c")  # imul ebp, ebp, 1664525; add ebp, 1013904223
    program.raw(f"89e8 c1e810 25{mask} 89a8{address.to_bytes(4, 'little').hex()}")  # eax = ebp >> 16 & mask; store
    program.raw("49")  # dec ecx
    program.raw(f"75{(start - len(program.code) - 2) & 0xFF:02x}")  # jnz start

"""A domain's core, read back."""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path

import pytest

from pyxen.hypervisor import core
from pyxen.hypervisor.core import CpuState
from pyxen.hypervisor.kvm import uapi
from pyxen.hypervisor.kvm.registers import Segment, SpecialRegisters
from pyxen.hypervisor.kvm.uapi import Register
from pyxen.hypervisor.memory import GuestMemory
from tests.testhost.cores import read

MIB = 1 << 20


def state(number: int) -> CpuState:
    sregs = SpecialRegisters(bytes(uapi.SREGS_SIZE))
    sregs.set_segment("cs", Segment(selector=0x10, type=11, long=1, granular=1))
    sregs.set_segment("gs", Segment(base=0xFFFF888000000000 + number))
    sregs.set_tables(gdt=(0x1111, 0x7F), idt=(0xFFFFFE0000000000, 0xFFF))
    sregs.cr0, sregs.cr3, sregs.cr4 = 0x80050033, 0x123000, 0x6F0
    return CpuState(number, [0x1000 * (register + 1) + number for register in Register], sregs, 0xABC)


def write(path: Path, memory: GuestMemory, cpus: list[CpuState]) -> int:
    with path.open("wb") as file:
        return core.write(file.fileno(), memory, cpus)


def test_memory_and_registers_are_found_again(tmp_path: Path) -> None:
    memory = GuestMemory([(1 << 32, mmap.mmap(-1, MIB)), (0, mmap.mmap(-1, 2 * MIB)), (2 * MIB, mmap.mmap(-1, 4096))])
    memory.write(2 * MIB - 4, b"MARK")
    memory.write((1 << 32) + 5000, b"MARK")
    size = write(tmp_path / "core", memory, [state(0), state(2)])
    found = read(tmp_path / "core", b"MARK")
    assert found["memory"] == [(0, 2 * MIB + 4096), (1 << 32, MIB)]
    assert found["word"] == [2 * MIB - 4, (1 << 32) + 5000]
    assert found["notes"] == [("CORE", 1, 336), ("QEMU", 0, 440)] * 2
    assert found["rip"] == [0x1000 * (Register.RIP + 1) + number for number in (0, 2)]
    assert size == (tmp_path / "core").stat().st_size


def test_zeros_take_no_room(tmp_path: Path) -> None:
    memory = GuestMemory.anonymous(64 * MIB)
    memory.write(10 * MIB, b"x")
    write(tmp_path / "core", memory, [state(0)])
    assert (tmp_path / "core").stat().st_size > 64 * MIB
    assert (tmp_path / "core").stat().st_blocks * 512 < MIB


def test_crash_finds_the_control_registers_where_qemu_puts_them(tmp_path: Path) -> None:
    write(tmp_path / "core", GuestMemory.anonymous(4096), [state(0)])
    data = (tmp_path / "core").read_bytes()
    at = data.index(b"QEMU\0") + 8
    assert struct.unpack_from("<II", data, at) == (1, 440)
    registers = struct.unpack_from("<18Q", data, at + 8)
    assert (registers[0], registers[16], registers[17]) == (0x1000, 0x11000, 0x12000)
    segments = [struct.unpack_from("<IIIIQ", data, at + 152 + 24 * index) for index in range(10)]
    assert segments[0] == (0x10, 0xFFFFFFFF, 0xA09B00, 0, 0)
    assert segments[8][1:] == (0x7F, 0, 0, 0x1111)
    assert segments[9][1:] == (0xFFF, 0, 0, 0xFFFFFE0000000000)
    assert struct.unpack_from("<6Q", data, at + 392) == (0x80050033, 0, 0, 0x123000, 0x6F0, 0xABC)


def test_a_full_disk_is_an_error() -> None:
    memory = GuestMemory.anonymous(4096)
    fd = os.open("/dev/full", os.O_WRONLY)
    try:
        with pytest.raises(OSError):
            core.write(fd, memory, [])
    finally:
        os.close(fd)

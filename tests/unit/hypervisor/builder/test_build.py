"""A domain's memory after it has been built."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from pyxen.abi import start_info as abi
from pyxen.errors import ConfigError, ResourceExhausted, Unsupported
from pyxen.hypervisor.builder import acpi, layout
from pyxen.hypervisor.builder.build import Built, allocate, build, memory_map
from pyxen.hypervisor.builder.hypercall_sites import trap
from tests.unit.hypervisor.builder.elves import LOAD_AT, NOTE_ENTRY, NOTE_HYPERCALL_PAGE, jumping_pair, linux_like, note

_ENTRY = note(NOTE_ENTRY, struct.pack("<I", LOAD_AT))


def built(
    tmp_path: Path, kernel: bytes, *, ramdisk: bytes | None = None, cmdline: str = "quiet", mib: int = 8
) -> Built:
    (tmp_path / "vmlinux").write_bytes(kernel)
    if ramdisk is not None:
        (tmp_path / "ramdisk").write_bytes(ramdisk)
    place = tmp_path / "ramdisk" if ramdisk is not None else None
    return build(allocate(mib << 20), tmp_path / "vmlinux", place, cmdline, 2)


def test_the_kernel_is_loaded_and_its_hypercalls_are_rewritten(tmp_path: Path) -> None:
    found = built(tmp_path, linux_like(jumping_pair()))
    assert (found.entry, found.bits) == (LOAD_AT, 64)
    assert found.memory.read(LOAD_AT, 3) == found.memory.read(LOAD_AT + 16, 3) == trap()
    assert found.memory.read(LOAD_AT + 3, 13) == jumping_pair()[3:16]


def mergeable_kib() -> int:
    """How much of this process's memory the kernel may share, by its own word."""
    found, size = 0, 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if line.startswith("Size:"):
            size = int(line.split()[1])
        elif line.startswith("VmFlags:") and "mg" in line.split():
            found += size
    return found


@pytest.mark.skipif(not Path("/sys/kernel/mm/ksm").exists(), reason="this kernel has no KSM")
def test_equal_pages_are_shared_only_if_asked_for() -> None:
    private = allocate(8 << 20)
    assert mergeable_kib() == 0
    shared = allocate(8 << 20, shared=True)
    assert mergeable_kib() == 8 << 10
    assert len(private.regions) == len(shared.regions)


def test_huge_pages_come_from_the_hosts_pool_or_not_at_all() -> None:
    pool = Path("/sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages")
    if not pool.exists() or pool.read_text() != "0\n":
        pytest.skip("this host has huge pages of 1 GiB")
    with pytest.raises(ResourceExhausted, match="the host has no 1024 MiB for the domain"):
        allocate(1 << 30, huge_bits=30)


def test_the_start_information_leads_to_everything(tmp_path: Path) -> None:
    ramdisk = b"a ramdisk" * 1000
    found = built(tmp_path, linux_like(jumping_pair()), ramdisk=ramdisk, cmdline="console=hvc0 x=ä")
    memory = found.memory
    info = abi.START_INFO.unpack(memory.view(found.start_info, 56), 64)
    assert (info.magic, info.version, info.flags, info.nr_modules) == (abi.MAGIC, 1, 0, 1)
    module = abi.MODULE.unpack(memory.view(info.modlist_paddr, 32), 64)
    assert memory.read(module.paddr, module.size) == ramdisk
    assert module.paddr % 4096 == 0
    text = "console=hvc0 x=ä".encode()
    assert memory.read(info.cmdline_paddr, len(text) + 1) == text + b"\0"
    rows = [
        tuple(abi.MEMMAP_ENTRY.unpack(memory.view(info.memmap_paddr + 24 * n, 24), 64))[:3]
        for n in range(info.memmap_entries)
    ]
    assert rows == memory_map(memory)
    assert (0, 8 << 20, abi.MEMMAP_RAM) in rows
    assert memory.read(info.rsdp_paddr, 8) == b"RSD PTR "
    assert found.start_info >= LOAD_AT + 32 + 0x1000  # behind the memory that the file does not fill


def test_memory_above_the_hole_starts_at_4_gib() -> None:
    assert layout.ram(5 << 30) == [(0, layout.LOW_RAM_END), (1 << 32, 2 << 30)]
    assert layout.ram(3 << 30) == [(0, 3 << 30)]


def test_a_linux_without_the_two_functions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="makes hypercalls in a way that is not known"):
        built(tmp_path, linux_like(b"\x90" * 64))


def test_kernels_that_use_the_hypercall_page_are_taken(tmp_path: Path) -> None:
    assert built(tmp_path, linux_like(b"\x90" * 64, notes=_ENTRY)).entry == LOAD_AT
    assert built(tmp_path, linux_like(b"\x90" * 64, notes=_ENTRY + note(NOTE_HYPERCALL_PAGE, bytes(8)))).entry


def test_a_kernel_without_a_pvh_entry_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="no PVH entry"):
        built(tmp_path, linux_like(jumping_pair(), notes=note(6, b"linux\0")))


@pytest.mark.parametrize("kernel", [b"", b"\x7fELF", b"nonsense" * 100])
def test_what_is_no_kernel_is_refused(tmp_path: Path, kernel: bytes) -> None:
    with pytest.raises(ConfigError, match=r"vmlinux can't be loaded: "):
        built(tmp_path, kernel)


def test_too_little_memory_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="8 MiB are too little memory") as caught:
        built(tmp_path, linux_like(jumping_pair(), bss=16 << 20))
    assert caught.value.key == "memory"
    with pytest.raises(ConfigError, match="and its ramdisk"):
        built(tmp_path, linux_like(jumping_pair()), ramdisk=bytes(8 << 20))


def test_a_ramdisk_that_is_not_there_is_told(tmp_path: Path) -> None:
    (tmp_path / "vmlinux").write_bytes(linux_like(jumping_pair()))
    with pytest.raises(ConfigError, match=r"ramdisk .*/none can't be read: No such file"):
        build(allocate(8 << 20), tmp_path / "vmlinux", tmp_path / "none", "", 1)


def test_a_command_line_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="2048 bytes; 2047 are possible"):
        built(tmp_path, linux_like(jumping_pair()), cmdline="x" * 2048)


@pytest.mark.parametrize("vcpus", [1, 4, 255, 400])
def test_acpi_tables_add_up_and_name_each_vcpu(vcpus: int) -> None:
    rsdp, blob = acpi.tables(vcpus)

    def table(address: int) -> bytes:
        start = address - layout.ACPI
        (length,) = struct.unpack_from("<I", blob, start + 4)
        found = blob[start : start + length]
        assert sum(found) % 256 == 0, found[:4]
        return found

    root = blob[rsdp - layout.ACPI :][:36]
    assert sum(root) % 256 == sum(root[:20]) % 256 == 0
    (xsdt,) = struct.unpack_from("<Q", root, 24)
    tables = {each[:4]: each for each in map(table, struct.unpack("<QQ", table(xsdt)[36:]))}
    assert set(tables) == {b"FACP", b"APIC"}
    assert table(struct.unpack_from("<Q", tables[b"FACP"], 140)[0])[:4] == b"DSDT"
    ids, rest = [], tables[b"APIC"][44:]
    while rest:
        ids.append(rest[3] if rest[0] == 0 else struct.unpack_from("<I", rest, 4)[0])
        rest = rest[rest[1] :]
    assert ids == list(range(vcpus))

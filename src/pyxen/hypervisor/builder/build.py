"""Fill a domain's memory: the kernel, its ramdisk, what it must be told at the start, ACPI tables, special pages."""

from __future__ import annotations

import contextlib
import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pyxen.abi import start_info as abi
from pyxen.abi.start_info import MEMMAP_ENTRY, MODULE, START_INFO, StartInfo
from pyxen.errors import ConfigError, ResourceExhausted, Unsupported
from pyxen.hypervisor.builder import acpi, hypercall_sites, layout
from pyxen.hypervisor.memory import PAGE_SIZE, BadAddress, GuestMemory
from pyxen.image import elf

_MAP_NORESERVE: Final = 0x4000
_MAP_HUGETLB: Final = 0x40000
_MAP_HUGE_SHIFT: Final = 26
_EXECUTABLE: Final = 1
_GUEST_OS, _HYPERCALL_PAGE = 6, 2  # Xen's ELF notes

_LONGEST_CMDLINE: Final = 2048


@dataclass(frozen=True, slots=True)
class Built:
    """A domain whose first VCPU can be started: at ``entry``, with EBX = ``start_info``."""

    memory: GuestMemory
    entry: int
    start_info: int
    bits: int
    """Of the kernel: 64 or 32."""


def allocate(
    size: int, *, huge_bits: int | None = None, shared: bool = False, template: int | None = None
) -> GuestMemory:
    """Zeroed memory for a domain: its RAM, the ACPI tables' and the special pages. Raises ResourceExhausted.

    The host gives a page when it is first used, and gets it back by madvise(MADV_DONTNEED). With ``huge_bits`` RAM is
    in pages of so many address bits, from the host's pool; with ``shared`` the host may keep equal pages once. With the
    file ``template`` RAM is a copy on write of what hypervisor.fill has put there.
    """
    others = [(layout.ACPI, layout.ACPI_SIZE), (layout.SPECIAL, layout.SPECIAL_PAGES * PAGE_SIZE)]
    offset = 0
    ram = []
    for address, length in layout.ram(size):
        if template is None:
            ram.append((address, pages(length, huge_bits=huge_bits, shared=shared)))
        else:
            ram.append((address, _copied(template, length, offset)))
            offset += length
    return GuestMemory([*ram, *((address, pages(length)) for address, length in others)], is_copy=template is not None)


def _copied(template: int, length: int, offset: int) -> mmap.mmap:
    try:
        found = mmap.mmap(template, length, flags=mmap.MAP_PRIVATE | _MAP_NORESERVE, offset=offset)
    except (OSError, ValueError) as error:
        raise ResourceExhausted(f"the domain's template can't be mapped: {error}") from error
    found.madvise(mmap.MADV_DONTDUMP)
    return found


def pages(length: int, *, huge_bits: int | None = None, shared: bool = False) -> mmap.mmap:
    """``length`` zeroed bytes of the host's memory. Raises ResourceExhausted."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    flags |= _MAP_NORESERVE if huge_bits is None else _MAP_HUGETLB | huge_bits << _MAP_HUGE_SHIFT
    try:
        found = mmap.mmap(-1, length, flags=flags)
    except OSError as error:
        raise ResourceExhausted(f"the host has no {length >> 20} MiB for the domain: {error.strerror}") from error
    if huge_bits is None and length >= 2 * layout.MIB:
        found.madvise(mmap.MADV_HUGEPAGE)
    if shared:
        with contextlib.suppress(OSError):  # a kernel without KSM
            found.madvise(mmap.MADV_MERGEABLE)
    found.madvise(mmap.MADV_DONTDUMP)
    return found


def build(memory: GuestMemory, kernel: Path, ramdisk: Path | None, cmdline: str, vcpus: int) -> Built:
    """Put everything into ``memory``, fresh from :func:`allocate`. Raises ConfigError and Unsupported."""
    try:
        return _build(memory, kernel, ramdisk, cmdline.encode(), vcpus)
    except BadAddress as error:
        size = sum(region.end - region.start for region in memory.regions[:-2])
        raise ConfigError(
            f"{size >> 20} MiB are too little memory for kernel {kernel}{' and its ramdisk' if ramdisk else ''}",
            key="memory",
            hint="Give the domain more: memory=…",
        ) from error


def _build(memory: GuestMemory, kernel: Path, ramdisk: Path | None, cmdline: bytes, vcpus: int) -> Built:
    bits, entry, end = _load(memory, kernel)
    if len(cmdline) >= _LONGEST_CMDLINE:
        raise ConfigError(f"the kernel's command line has {len(cmdline)} bytes; 2047 are possible", key="cmdline")
    start_info = _page_up(end)
    module = None
    if ramdisk is not None:
        # The kernel reads what it is told at the start through a map of its first GiB; the ramdisk may lie above.
        place = start_info + 2 * PAGE_SIZE
        module = (place, _copy(memory, ramdisk, place))
    rsdp, tables = acpi.tables(vcpus)
    memory.write(layout.ACPI, tables)
    memory.write(start_info, _start_info(memory, start_info, cmdline, module, rsdp))
    return Built(memory, entry, start_info, bits)


def _load(memory: GuestMemory, kernel: Path) -> tuple[int, int, int]:
    """Load the kernel's segments; returns (bits, entry, end of what it needs)."""
    try:
        with kernel.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            data = memoryview(mapped)
            try:
                return _load_from(memory, kernel, data)
            finally:
                data.release()
    except (OSError, ValueError) as error:
        raise ConfigError(f"kernel {kernel} can't be loaded: {error}", key="kernel") from error


def _load_from(memory: GuestMemory, kernel: Path, data: memoryview) -> tuple[int, int, int]:
    header = elf.parse(data)
    entry = elf.pvh_entry(header, data)
    if entry is None:
        raise Unsupported(f"kernel {kernel} has no PVH entry point", hint="Use another kernel, or type=hvm.")
    segments = [segment for segment in header.segments if segment.type == elf.PT_LOAD]
    for s in segments:
        memory.view(s.paddr, s.memsz)[: s.filesz] = data[s.offset : s.offset + s.filesz]
    executable = [s for s in segments if s.flags & _EXECUTABLE]
    sites = hypercall_sites.find(((s.paddr, memory.view(s.paddr, s.filesz)) for s in executable), header.bits)
    if not sites and _must_have_sites(header, data):
        raise Unsupported(
            f"kernel {kernel} makes hypercalls in a way that is not known",
            hint="Use another kernel, or type=hvm; please report this kernel's version.",
        )
    for site in sites:
        memory.write(site, hypercall_sites.trap())
    return header.bits, entry, max(s.paddr + s.memsz for s in segments)


def _must_have_sites(header: elf.Elf, data: memoryview) -> bool:
    """Is it a Linux that has no use for a hypercall page?"""
    notes = {kind: contents for name, kind, contents in elf.notes(header, data) if name == b"Xen"}
    return notes.get(_GUEST_OS, b"").startswith(b"linux") and _HYPERCALL_PAGE not in notes


def _copy(memory: GuestMemory, path: Path, place: int) -> int:
    """Read a file into memory without a copy between; returns its size."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            view = memory.view(place, size)
            done = 0
            while done < size and (count := file.readinto(view[done:])):
                done += count
    except OSError as error:
        raise ConfigError(f"ramdisk {path} can't be read: {error.strerror}", key="ramdisk") from error
    if done < size:
        raise ConfigError(f"ramdisk {path} became smaller while it was being read", key="ramdisk")
    return size


def _start_info(memory: GuestMemory, place: int, cmdline: bytes, module: tuple[int, int] | None, rsdp: int) -> bytes:
    """struct hvm_start_info and what it points to: the module, the memory map, the command line."""
    table = memory_map(memory)
    modules = [MODULE.pack((*module, 0, 0), 64)] if module else []
    modules_at = place + 64
    map_at = modules_at + MODULE.size64 * len(modules)
    cmdline_at = map_at + MEMMAP_ENTRY.size64 * len(table)
    head = StartInfo(
        magic=abi.MAGIC,
        version=abi.VERSION,
        flags=0,
        nr_modules=len(modules),
        modlist_paddr=modules_at if modules else 0,
        cmdline_paddr=cmdline_at,
        rsdp_paddr=rsdp,
        memmap_paddr=map_at,
        memmap_entries=len(table),
        reserved=0,
    )
    entries = [MEMMAP_ENTRY.pack((*entry, 0), 64) for entry in table]
    return b"".join([START_INFO.pack(head, 64).ljust(64, b"\0"), *modules, *entries, cmdline, b"\0"])


def memory_map(memory: GuestMemory) -> list[tuple[int, int, int]]:
    """The (address, length, e820 type) of each piece of memory, as XENMEM_memory_map gives it too."""
    kinds = {layout.ACPI: abi.MEMMAP_ACPI, layout.SPECIAL: abi.MEMMAP_RESERVED}
    return sorted((r.start, r.end - r.start, kinds.get(r.start, abi.MEMMAP_RAM)) for r in memory.regions)


def _page_up(address: int) -> int:
    return -(-address // PAGE_SIZE) * PAGE_SIZE

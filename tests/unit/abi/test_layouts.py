"""Every structure has the size and the offsets that the C compiler gives it (measured from Xen's headers)."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from pyxen.abi import (
    event_channel,
    features,
    grant_table,
    hvm,
    hypercall,
    memory,
    sched,
    shared_info,
    start_info,
    vcpu,
    version,
)
from pyxen.abi.cpuid import leaves
from pyxen.abi.layout import U8, U16, U32, U64, Layout, Pointer, U64Aligned, ULong

SIZES: list[tuple[Layout[Any], int, int]] = [
    (event_channel.BIND_INTERDOMAIN_ARG, 12, 12),
    (event_channel.BIND_VIRQ_ARG, 12, 12),
    (event_channel.PORT_ARG, 4, 4),
    (event_channel.STATUS_ARG, 24, 24),
    (event_channel.ALLOC_UNBOUND_ARG, 8, 8),
    (event_channel.BIND_IPI_ARG, 8, 8),
    (event_channel.BIND_VCPU_ARG, 8, 8),
    (event_channel.RESET_ARG, 2, 2),
    (event_channel.INIT_CONTROL_ARG, 24, 24),
    (event_channel.EXPAND_ARRAY_ARG, 8, 8),
    (event_channel.SET_PRIORITY_ARG, 8, 8),
    (grant_table.MAP_GRANT_REF_ARG, 32, 32),
    (grant_table.UNMAP_GRANT_REF_ARG, 24, 24),
    (grant_table.SETUP_TABLE_ARG, 24, 16),
    (grant_table.COPY_ARG, 40, 24),
    (grant_table.QUERY_SIZE_ARG, 16, 16),
    (grant_table.SET_VERSION_ARG, 4, 4),
    (grant_table.GET_STATUS_FRAMES_ARG, 16, 12),
    (grant_table.GET_VERSION_ARG, 8, 8),
    (grant_table.SWAP_GRANT_REF_ARG, 12, 12),
    (memory.RESERVATION_ARG, 32, 20),
    (memory.ADD_TO_PHYSMAP_ARG, 24, 16),
    (memory.ADD_TO_PHYSMAP_BATCH_ARG, 32, 20),
    (memory.REMOVE_FROM_PHYSMAP_ARG, 16, 8),
    (memory.MEMORY_MAP_ARG, 16, 8),
    (sched.POLL_ARG, 24, 16),
    (sched.SHUTDOWN_ARG, 4, 4),
    (sched.REMOTE_SHUTDOWN_ARG, 8, 8),
    (sched.WATCHDOG_ARG, 8, 8),
    (vcpu.RUNSTATE_INFO, 48, 44),
    (vcpu.VCPU_TIME_INFO, 32, 32),
    (vcpu.REGISTER_VCPU_INFO_ARG, 16, 16),
    (vcpu.SET_SINGLESHOT_TIMER_ARG, 16, 12),
    (vcpu.CONTEXT_64, 112, 112),
    (hvm.PARAM_ARG, 16, 16),
    (hvm.GET_MEM_TYPE_ARG, 16, 16),
    (hvm.EVTCHN_UPCALL_VECTOR_ARG, 8, 8),
    (hypercall.MULTICALL_ENTRY, 64, 32),
    (version.FEATURE_INFO, 8, 8),
    (start_info.START_INFO, 56, 56),
    (start_info.MODULE, 32, 32),
    (start_info.MEMMAP_ENTRY, 24, 24),
]

OFFSETS: list[tuple[Layout[Any], dict[str, tuple[int, int]]]] = [
    (
        event_channel.STATUS_ARG,
        {"port": (4, 4), "status": (8, 8), "vcpu": (12, 12), "word0": (16, 16), "word1": (20, 20)},
    ),
    (event_channel.INIT_CONTROL_ARG, {"offset": (8, 8), "vcpu": (12, 12), "link_bits": (16, 16)}),
    (grant_table.MAP_GRANT_REF_ARG, {"ref": (12, 12), "dom": (16, 16), "status": (18, 18), "handle": (20, 20)}),
    (grant_table.UNMAP_GRANT_REF_ARG, {"handle": (16, 16), "status": (20, 20)}),
    (grant_table.SETUP_TABLE_ARG, {"nr_frames": (4, 4), "status": (8, 8), "frame_list": (16, 12)}),
    (grant_table.COPY_ARG, {"source_domid": (8, 4), "source_offset": (10, 6), "dest": (16, 8), "length": (32, 16)}),
    (grant_table.QUERY_SIZE_ARG, {"nr_frames": (4, 4), "max_nr_frames": (8, 8), "status": (12, 12)}),
    (memory.RESERVATION_ARG, {"nr_extents": (8, 4), "extent_order": (16, 8), "mem_flags": (20, 12), "domid": (24, 16)}),
    (memory.ADD_TO_PHYSMAP_ARG, {"size": (2, 2), "space": (4, 4), "idx": (8, 8), "gpfn": (16, 12)}),
    (memory.ADD_TO_PHYSMAP_BATCH_ARG, {"idxs": (8, 8), "gpfns": (16, 12), "errs": (24, 16)}),
    (memory.REMOVE_FROM_PHYSMAP_ARG, {"gpfn": (8, 4)}),
    (memory.MEMORY_MAP_ARG, {"buffer": (8, 4)}),
    (sched.POLL_ARG, {"nr_ports": (8, 4), "timeout": (16, 8)}),
    (vcpu.RUNSTATE_INFO, {"entry_time": (8, 4), "running": (16, 12), "offline": (40, 36)}),
    (vcpu.VCPU_TIME_INFO, {"tsc_timestamp": (8, 8), "system_time": (16, 16), "tsc_shift": (28, 28), "flags": (29, 29)}),
    (vcpu.CONTEXT_32, {"eip": (32, 32), "cr0": (40, 40), "efer": (56, 56), "cs_base": (64, 64), "cs_limit": (84, 84)}),
    (vcpu.CONTEXT_32, {"cs_ar": (104, 104), "tr_ar": (112, 112)}),
    (vcpu.CONTEXT_64, {"rip": (64, 64), "cr0": (80, 80), "efer": (104, 104)}),
    (hvm.PARAM_ARG, {"number": (4, 4), "value": (8, 8)}),
    (hvm.GET_MEM_TYPE_ARG, {"mem_type": (2, 2), "pfn": (8, 8)}),
    (start_info.START_INFO, {"modlist_paddr": (16, 16), "memmap_paddr": (40, 40), "memmap_entries": (48, 48)}),
]


@pytest.mark.parametrize(("layout", "size64", "size32"), SIZES, ids=lambda value: getattr(value, "name", str(value)))
def test_structures_have_the_sizes_that_c_gives_them(layout: Layout[Any], size64: int, size32: int) -> None:
    assert (layout.size(64), layout.size(32)) == (size64, size32)


@pytest.mark.parametrize(("layout", "offsets"), OFFSETS, ids=lambda value: getattr(value, "name", ""))
def test_fields_lie_where_c_puts_them(layout: Layout[Any], offsets: dict[str, tuple[int, int]]) -> None:
    assert {name: (layout.offset(64, name), layout.offset(32, name)) for name in offsets} == offsets


def test_shared_info_has_the_measured_offsets() -> None:
    assert shared_info.LAYOUT_64.pending == 2048
    assert shared_info.LAYOUT_64.mask == 2048 + shared_info.LAYOUT_64.ports // 8 == 2560
    assert shared_info.LAYOUT_32.mask == 2048 + shared_info.LAYOUT_32.ports // 8 == 2176
    assert shared_info.LAYOUT_32.word_bits**2 == shared_info.LAYOUT_32.ports
    assert (shared_info.LAYOUT_64.wc_version, shared_info.LAYOUT_32.wc_version) == (3072, 2304)


def test_the_features_are_those_of_a_pvh_domain() -> None:
    assert features.PVH_DOMU == 0x00012305 | 1 << 18 | 1 << 19


def test_the_vcpu_context_fits_its_union() -> None:
    assert vcpu.CONTEXT_32.offset(64, "tr_ar") + 8 == vcpu.CONTEXT_32.size(64) == 120
    assert vcpu.CONTEXT_SIZE == 128


def test_cpuid_leaves_spell_xen_and_name_the_vcpu() -> None:
    found = {(leaf.function, leaf.subleaf): leaf for leaf in leaves(7, 3, 2_000_000, 0x80000000, -1)}
    base = found[0x40000000, 0]
    assert b"".join(word.to_bytes(4, "little") for word in base[3:]) == b"XenVMMXenVMM"
    assert base.eax == 0x40000005
    assert found[0x40000004, 0][2:5] == (0x58, 3, 7)
    assert found[0x40000003, 1].edx == 0xFFFFFFFF


class Mixed(NamedTuple):
    a: U8
    b: U64
    c: U16
    d: Pointer
    e: U32
    f: U64Aligned
    g: ULong


MIXED = Layout(Mixed)


def test_numbers_of_64_bits_are_aligned_as_on_i386() -> None:
    assert [MIXED.offset(64, name) for name in "abcdefg"] == [0, 8, 16, 24, 32, 40, 48]
    assert [MIXED.offset(32, name) for name in "abcdefg"] == [0, 4, 12, 16, 20, 24, 32]
    assert (MIXED.size(64), MIXED.size(32)) == (56, 40)


@pytest.mark.parametrize("bits", [64, 32])
def test_what_is_packed_is_unpacked(bits: int) -> None:
    value = Mixed(1, 2**63, 3, 0x80000000, 4, 2**64 - 1, 5)
    data = MIXED.pack(value, bits)
    assert len(data) == MIXED.size(bits)
    assert MIXED.unpack(b"\xff" * 3 + data, bits, 3) == value
    at = MIXED.offset(bits, "e")
    assert data[at : at + 4] == MIXED.pack_field("e", 4, bits)


def test_a_field_without_a_kind_is_a_mistake() -> None:
    class Wrong(NamedTuple):
        a: int

    with pytest.raises(TypeError, match=r"Wrong\.a"):
        _ = Layout(Wrong).size64

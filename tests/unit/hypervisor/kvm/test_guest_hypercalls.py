"""Each group of hypercalls made by code that runs on KVM: registers, pointers and results as a guest sees them."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest

from pyxen.abi import errno, event_channel, grant_table, hvm, memory, sched, vcpu, version
from pyxen.abi import hypercall as nr
from pyxen.abi.shared_info import DOMID_SELF, LAYOUTS, PAGE_SIZE, VCPU_INFO_SIZE
from pyxen.hypervisor.builder import hypercall_sites, layout
from pyxen.hypervisor.kvm.uapi import Register
from tests.unit.hypervisor.kvm.domains import DOMID, MEMORY, PAGES, MicroDomain
from tests.unit.hypervisor.kvm.micro import CODE, needs_kvm
from tests.unit.hypervisor.kvm.test_processor import Xen, processor

pytestmark = needs_kvm
_GFN = PAGES // PAGE_SIZE
_OUTSIDE = 0x40000
"""A frame outside of RAM."""
_LAPIC = 0xFEE00000
_SPURIOUS, _REQUESTED = 0xF0, 0x200
_VECTOR = 0xF3


@pytest.fixture(params=[64, 32])
def guest(request: pytest.FixtureRequest) -> MicroDomain:
    return MicroDomain(request.param)


def place(guest: MicroDomain, space: int, gfn: int) -> None:
    value = memory.AddToPhysmap(DOMID_SELF, 0, space, 0, gfn)
    guest.op(nr.MEMORY_OP, memory.ADD_TO_PHYSMAP, memory.ADD_TO_PHYSMAP_ARG, value)


def test_xen_version(guest: MicroDomain) -> None:
    text = guest.put(bytes(16))
    guest.call(nr.XEN_VERSION, version.VERSION, 0)
    guest.call(nr.XEN_VERSION, version.EXTRAVERSION, text)
    guest.call(nr.XEN_VERSION, version.EXTRAVERSION, 0xDEADF000)
    guest.call(nr.XEN_VERSION, 99, text)
    guest.run()
    assert guest.results() == [0x40011, 0, -errno.EFAULT, -errno.ENOSYS]
    assert guest.memory.read(text, 16) == b".0-pyxen".ljust(16, b"\0")


def test_memory_op(guest: MicroDomain) -> None:
    extents = guest.put((_GFN + 5).to_bytes(guest.bits // 8, "little"))
    guest.memory.write((_GFN + 5) * PAGE_SIZE, b"gone")
    one = memory.Reservation(extents, 1, 0, 0, DOMID_SELF)
    guest.op(nr.MEMORY_OP, memory.CURRENT_RESERVATION, memory.DOMAIN_ID_ARG, memory.DomainId(DOMID_SELF))
    guest.op(nr.MEMORY_OP, memory.DECREASE_RESERVATION, memory.RESERVATION_ARG, one)
    guest.op(nr.MEMORY_OP, memory.CURRENT_RESERVATION, memory.DOMAIN_ID_ARG, memory.DomainId(DOMID))
    guest.op(nr.MEMORY_OP, memory.POPULATE_PHYSMAP, memory.RESERVATION_ARG, one)
    guest.op(nr.MEMORY_OP, memory.POPULATE_PHYSMAP, memory.RESERVATION_ARG, one._replace(extent_start=0x7FFFF000))
    place(guest, memory.SPACE_SHARED_INFO, _GFN)
    place(guest, memory.SPACE_SHARED_INFO, _OUTSIDE)
    guest.run()
    pages = MEMORY // PAGE_SIZE
    assert guest.results() == [pages, 1, pages - 1, 1, -errno.EFAULT, 0, 0]
    assert guest.memory.read((_GFN + 5) * PAGE_SIZE, 4) == bytes(4)
    assert guest.domain.shared_info.gfn == _OUTSIDE
    assert guest.memory.u32(_OUTSIDE * PAGE_SIZE + LAYOUTS[guest.bits].wc_sec) > 1_600_000_000


def test_event_channel_op_and_an_upcall_in_the_local_apic(guest: MicroDomain) -> None:
    place(guest, memory.SPACE_SHARED_INFO, _GFN)
    guest.program.store(_LAPIC + _SPURIOUS, 0x1FF)
    vector = hvm.EvtchnUpcallVector(0, _VECTOR)
    guest.op(nr.HVM_OP, hvm.SET_EVTCHN_UPCALL_VECTOR, hvm.EVTCHN_UPCALL_VECTOR_ARG, vector)
    bound = guest.op(
        nr.EVENT_CHANNEL_OP, event_channel.BIND_IPI, event_channel.BIND_IPI_ARG, event_channel.BindIpi(0, 0)
    )
    before = guest.put(bytes(4))
    requested = _LAPIC + _REQUESTED + _VECTOR // 32 * 16
    guest.program.copy(requested, before)
    port = guest.put(bytes(8))
    guest.program.copy(bound + event_channel.BIND_IPI_ARG.offset(guest.bits, "port"), port)
    guest.call(nr.EVENT_CHANNEL_OP, event_channel.SEND, port)
    after = guest.put(bytes(4))
    guest.program.copy(requested, after)
    unbound = event_channel.AllocUnbound(DOMID_SELF, 0, 0)
    offered = guest.op(nr.EVENT_CHANNEL_OP, event_channel.ALLOC_UNBOUND, event_channel.ALLOC_UNBOUND_ARG, unbound)
    guest.op(nr.EVENT_CHANNEL_OP, event_channel.SEND, event_channel.PORT_ARG, event_channel.Port(4000))
    guest.call(nr.EVENT_CHANNEL_OP, event_channel.CLOSE, port)
    guest.call(nr.EVENT_CHANNEL_OP, event_channel.SEND, port)
    guest.run()
    assert guest.results() == [0, 0, 0, 0, 0, -errno.EINVAL, 0, -errno.EINVAL]
    bit = 1 << _VECTOR % 32
    assert guest.memory.u32(before) & bit == 0
    assert guest.memory.u32(after) & bit
    number = guest.memory.u32(port)
    size = event_channel.ALLOC_UNBOUND_ARG.size(guest.bits)
    assert event_channel.ALLOC_UNBOUND_ARG.unpack(guest.memory.read(offered, size), guest.bits).port == number + 1
    assert guest.memory.u8(_GFN * PAGE_SIZE) == 1  # evtchn_upcall_pending of VCPU 0


def test_grant_table_op(guest: MicroDomain) -> None:
    place(guest, memory.SPACE_GRANT_TABLE, _GFN)
    source, target = _GFN + 1, _GFN + 2
    guest.memory.write(source * PAGE_SIZE + 100, b"copied")
    # Entry 8: the guest lets itself read the source.
    guest.program.store(_GFN * PAGE_SIZE + 8 * 8 + 4, source)
    guest.program.store(_GFN * PAGE_SIZE + 8 * 8, 1 | DOMID << 16)
    query = grant_table.QuerySize(DOMID_SELF, 0, 0, 0)
    asked = guest.op(nr.GRANT_TABLE_OP, grant_table.QUERY_SIZE, grant_table.QUERY_SIZE_ARG, query, 1)
    zeros = dict.fromkeys(grant_table.CopyOp._fields, 0)
    right: dict[str, Any] = {
        "source": 8, "source_domid": DOMID_SELF, "source_offset": 100, "dest": target, "dest_domid": DOMID_SELF,
        "dest_offset": 7, "length": len(b"copied"), "flags": grant_table.COPY_SOURCE_GREF,
    }  # fmt: skip
    copy = grant_table.CopyOp(**(zeros | right))
    good = guest.op(nr.GRANT_TABLE_OP, grant_table.COPY, grant_table.COPY_ARG, copy, 1)
    bad = guest.op(nr.GRANT_TABLE_OP, grant_table.COPY, grant_table.COPY_ARG, copy._replace(source=9), 1)
    guest.call(nr.GRANT_TABLE_OP, grant_table.COPY, good, 1 << 31)
    guest.run()
    assert guest.results() == [0, 0, 0, 0, -errno.EINVAL]
    assert guest.memory.read(target * PAGE_SIZE, 16) == b"\0" * 7 + b"copied" + b"\0" * 3
    size = grant_table.QUERY_SIZE_ARG.size(guest.bits)
    answer = grant_table.QUERY_SIZE_ARG.unpack(guest.memory.read(asked, size), guest.bits)
    assert (answer.status, answer.nr_frames) == (grant_table.OKAY, 1)
    status = grant_table.COPY_ARG.offset(guest.bits, "status")
    assert guest.memory.u16(good + status) == grant_table.OKAY
    assert guest.memory.u16(bad + status) == grant_table.BAD_GNTREF & 0xFFFF


def test_sched_op_and_the_timer(guest: MicroDomain) -> None:
    place(guest, memory.SPACE_SHARED_INFO, _GFN)
    virq = event_channel.BindVirq(event_channel.VIRQ_TIMER, 0, 0)
    bound = guest.op(nr.EVENT_CHANNEL_OP, event_channel.BIND_VIRQ, event_channel.BIND_VIRQ_ARG, virq)
    port = guest.put(bytes(8))
    guest.program.copy(bound + event_channel.BIND_VIRQ_ARG.offset(guest.bits, "port"), port)
    guest.call(nr.SCHED_OP, sched.YIELD, 0)
    guest.call(nr.SET_TIMER_OP, 1, 0)
    # Returns by the event, or early without one: until the port is pending it is made again.
    again = len(guest.program.code)
    poll = guest.op(nr.SCHED_OP, sched.POLL, sched.POLL_ARG, sched.Poll(port, 1, 0))
    pending = _GFN * PAGE_SIZE + LAYOUTS[guest.bits].pending
    if guest.bits == 64:
        guest.program.raw(f"48b8{pending.to_bytes(8, 'little').hex()} 833800")  # mov rax, pending; cmp dword [rax], 0
    else:
        guest.program.raw(f"833d{pending.to_bytes(4, 'little').hex()}00")  # cmp dword [pending], 0
    guest.program.raw("7505")  # jne over the jump back
    guest.program.loop_to(again)
    guest.call(nr.SCHED_OP, sched.POLL, guest.put(sched.POLL_ARG.pack(sched.Poll(port, 129, 0), guest.bits)))
    guest.run()
    assert guest.results() == [0, 0, 0, 0, 0, -errno.EINVAL]
    assert guest.memory.u32(pending) == 1 << guest.memory.u32(port)
    assert poll


def test_vcpu_op(guest: MicroDomain) -> None:
    info = vcpu.RegisterVcpuInfo(_GFN + 1, 64, 0)
    guest.call(nr.VCPU_OP, vcpu.IS_UP, 0, 0)
    guest.call(nr.VCPU_OP, vcpu.IS_UP, 1, 0)
    guest.call(nr.VCPU_OP, vcpu.REGISTER_VCPU_INFO, 0, guest.put(vcpu.REGISTER_VCPU_INFO_ARG.pack(info, guest.bits)))
    guest.call(nr.VCPU_OP, vcpu.REGISTER_VCPU_INFO, 0, guest.put(vcpu.REGISTER_VCPU_INFO_ARG.pack(info, guest.bits)))
    runstate = guest.put(bytes(vcpu.RUNSTATE_INFO.size(guest.bits)))
    guest.call(nr.VCPU_OP, vcpu.GET_RUNSTATE_INFO, 0, runstate)
    area = guest.put(bytes(vcpu.VCPU_TIME_INFO.size64))
    where = guest.put(vcpu.REGISTER_AREA_ARG.pack(vcpu.RegisterArea(area), guest.bits))
    guest.call(nr.VCPU_OP, vcpu.REGISTER_VCPU_TIME_MEMORY_AREA, 0, where)
    guest.run()
    assert guest.results() == [1, -errno.ENOENT, 0, -errno.EBUSY, 0, 0]
    own = guest.memory.read((_GFN + 1) * PAGE_SIZE + 64, VCPU_INFO_SIZE)
    assert own[0] == 1 and any(own[32:]), "neither its pending flag nor its clock is there"
    assert guest.memory.read(area + 4, 28) == own[36:]


def test_hvm_op(guest: MicroDomain) -> None:
    def param(number: int, value: int = 0) -> hvm.Param:
        return hvm.Param(DOMID_SELF, number, value)

    got = guest.op(nr.HVM_OP, hvm.GET_PARAM, hvm.PARAM_ARG, param(hvm.PARAM_STORE_PFN))
    guest.op(nr.HVM_OP, hvm.GET_PARAM, hvm.PARAM_ARG, param(hvm.NR_PARAMS))
    vector = hvm.CALLBACK_VECTOR << hvm.CALLBACK_TYPE_SHIFT | _VECTOR
    guest.op(nr.HVM_OP, hvm.SET_PARAM, hvm.PARAM_ARG, param(hvm.PARAM_CALLBACK_IRQ, vector))
    guest.op(nr.HVM_OP, hvm.SET_PARAM, hvm.PARAM_ARG, param(hvm.PARAM_STORE_PFN, 1))
    guest.call(nr.HVM_OP, hvm.FLUSH_TLBS, 0)
    guest.run()
    assert guest.results() == [0, -errno.EINVAL, 0, -errno.EPERM, -errno.ENOSYS]
    answer = hvm.PARAM_ARG.unpack(guest.memory.read(got, hvm.PARAM_ARG.size(64)), 64)
    assert answer.value == layout.XENSTORE_GFN
    assert guest.domain.callback_vector == _VECTOR
    assert guest.domain.shared_info.bits == guest.bits


def test_console_io_and_what_a_pvh_guest_does_not_have(guest: MicroDomain) -> None:
    text = guest.put(b"said by a guest\n")
    guest.call(nr.CONSOLE_IO, nr.CONSOLE_WRITE, 16, text)
    guest.call(nr.CONSOLE_IO, nr.CONSOLE_WRITE, 0x7FFFFFFF, text)
    guest.call(nr.CONSOLE_IO, nr.CONSOLE_READ, 16, text)
    guest.call(nr.PHYSDEV_OP, 25, text)
    guest.call(nr.DOMCTL, text)
    guest.call(1, text)
    guest.run()
    assert guest.results()[0] == 0
    assert guest.results()[2:] == [0, -errno.ENOSYS, -errno.EPERM, -errno.ENOSYS]
    assert guest.printed.startswith(b"said by a guest\n")


def test_multicall(guest: MicroDomain) -> None:
    entries = [
        (nr.XEN_VERSION, version.VERSION, 0),
        (nr.CONSOLE_IO, nr.CONSOLE_WRITE, 3, guest.put(b"two")),
        (nr.MULTICALL, 0, 1),
    ]
    packed = [
        nr.MULTICALL_ENTRY.pack(nr.MulticallEntry(*(number, 0, *args, *(0,) * 6)[:8]), guest.bits)
        for number, *args in entries
    ]
    at = guest.put(b"".join(packed))
    guest.call(nr.MULTICALL, at, 3)
    guest.call(nr.MULTICALL, at, 1 << 31)
    guest.run()
    assert guest.results() == [0, -errno.E2BIG]
    size = nr.MULTICALL_ENTRY.size(guest.bits)
    width = guest.bits // 8
    told = [int.from_bytes(guest.memory.read(at + size * n + width, width), "little", signed=True) for n in range(3)]
    assert told == [0x40011, 0, -errno.ENOSYS]
    assert guest.printed == b"two"


def test_a_user_program_may_make_no_hypercalls() -> None:
    """The privilege level comes with every exit; a kernel may well let programs reach the port."""
    xen = Xen()
    #   mov eax, 17; out; mov [0x2000], eax; jmp $
    code = f"b811000000 e7{hypercall_sites.PORT:02x} a300200000 ebfe"
    with processor(code, xen) as (cpu, ram, _):
        sregs = cpu.kvm.get_sregs()
        for name in ("cs", "ds", "ss", "es"):
            segment = sregs.segment(name)
            sregs.set_segment(name, replace(segment, dpl=3, selector=segment.selector | 3))
        cpu.kvm.set_sregs(sregs)
        cpu.kvm.set_regs({Register.RIP: CODE, Register.RFLAGS: 0x3002})
        cpu.start()
        deadline = time.monotonic() + 20
        while not ram.u32(0x2000) and time.monotonic() < deadline:
            time.sleep(0.001)
        assert ram.u32(0x2000) == -errno.EPERM & 0xFFFFFFFF
        assert xen.seen.empty()

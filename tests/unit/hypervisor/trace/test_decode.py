"""What a trace says of each hypercall and exit."""

from __future__ import annotations

import struct
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyxen.abi import event_channel, grant_table, hvm, memory, sched, vcpu, version
from pyxen.abi import hypercall as nr
from pyxen.abi.shared_info import DOMID_SELF
from pyxen.abi.xs_wire import Op
from pyxen.hypervisor.hypercalls import TABLE
from pyxen.hypervisor.kvm.uapi import IO_EXIT, MMIO_EXIT, MSR_EXIT, Exit
from pyxen.hypervisor.trace.calls import OPS
from pyxen.hypervisor.trace.decode import decode, kind_of
from pyxen.hypervisor.trace.observed import Kind
from pyxen.hypervisor.trace.words import ERRORS, HYPERCALLS
from tests.unit.hypervisor.hypercalls.scripted import DOMID, NOWHERE, SIZE, ScriptedGuest
from tests.unit.hypervisor.trace.traced import TracedGuest

BOTH = pytest.mark.parametrize("bits", [64, 32])
CALLS = [(number, cmd) for number in TABLE for cmd in OPS.get(number, {0: None})]


def brief(guest: TracedGuest) -> tuple[Any, ...]:
    found = guest.last()
    return found.name, found.op, found.args, found.out, found.result, found.error


@BOTH
@pytest.mark.parametrize(("number", "cmd"), CALLS, ids=lambda value: str(value))
def test_every_operation_has_a_name_and_is_answered_as_without_a_trace(number: int, cmd: int, bits: int) -> None:
    answers = []
    for kind in (TracedGuest, ScriptedGuest):
        guest: ScriptedGuest = kind(bits=bits)
        address = guest.store(bytes(256))
        registers = (cmd, 1, address) if number == nr.VCPU_OP else (cmd, address, 1)
        if number == nr.SCHED_OP and cmd == sched.BLOCK:
            guest.domain.vcpus[0].info.view[guest.domain.vcpus[0].info_offset] = 1
        answers.append((guest.call(number, *registers), bytes(guest.memory.view(0, SIZE))))
        if isinstance(guest, TracedGuest):
            found = guest.last()
    assert answers[0] == answers[1]
    assert found.name == HYPERCALLS[number]
    assert not found.op.startswith("op_")
    assert (found.op != "") == (number in OPS or number == nr.EVENT_CHANNEL_OP_COMPAT)
    assert found.result == answers[0][0]
    assert found.error == (ERRORS[-answers[0][0]] if answers[0][0] < 0 else None)


@BOTH
def test_event_channel_op(bits: int) -> None:
    guest = TracedGuest(bits=bits)
    value = event_channel.AllocUnbound(DOMID_SELF, 0, 0)
    guest.op(nr.EVENT_CHANNEL_OP, event_channel.ALLOC_UNBOUND, event_channel.ALLOC_UNBOUND_ARG, value)
    assert brief(guest) == ("event_channel_op", "alloc_unbound", {"dom": "self", "remote_dom": 0}, {"port": 1}, 0, None)
    virq = event_channel.BindVirq(event_channel.VIRQ_TIMER, 1, 0)
    guest.op(nr.EVENT_CHANNEL_OP, event_channel.BIND_VIRQ, event_channel.BIND_VIRQ_ARG, virq)
    assert brief(guest)[2:4] == ({"virq": "timer", "vcpu": 1}, {"port": 2})
    status = event_channel.Status(DOMID, 1, 0, 0, 0, 0)
    guest.op(nr.EVENT_CHANNEL_OP, event_channel.STATUS, event_channel.STATUS_ARG, status)
    assert brief(guest)[3] == {"status": "unbound", "vcpu": 0, "word0": 0, "word1": 0}
    guest.op(nr.EVENT_CHANNEL_OP, event_channel.SEND, event_channel.PORT_ARG, event_channel.Port(77))
    assert brief(guest) == ("event_channel_op", "send", {"port": 77}, {}, -22, "EINVAL")


def test_the_old_event_channel_op() -> None:
    guest = TracedGuest()
    virq = event_channel.BIND_VIRQ_ARG.pack(event_channel.BindVirq(1, 0, 0), 64)
    address = guest.store(struct.pack("<I", event_channel.BIND_VIRQ) + virq)
    assert guest.call(nr.EVENT_CHANNEL_OP_COMPAT, address) == 0
    assert brief(guest)[:4] == ("event_channel_op_compat", "bind_virq", {"virq": "debug", "vcpu": 0}, {"port": 1})
    assert guest.call(nr.EVENT_CHANNEL_OP_COMPAT, NOWHERE) < 0
    assert brief(guest)[2] == {"pointer": f"{NOWHERE:#x} (not mapped)"}


@BOTH
def test_what_lies_behind_a_pointer_in_a_structure(bits: int) -> None:
    guest = TracedGuest(bits=bits)
    ports = guest.store(struct.pack("<3I", 1, 2, 3))
    guest.op(nr.SCHED_OP, sched.POLL, sched.POLL_ARG, sched.Poll(ports, 3, 1))
    assert brief(guest)[2] == {"ports": [1, 2, 3], "nr_ports": 3, "timeout": 1}
    frames = guest.store(struct.pack("<2Q" if bits == 64 else "<2I", 0x300, 0x301))
    value = memory.Reservation(frames, 2, 0, 0, DOMID_SELF)
    guest.op(nr.MEMORY_OP, memory.DECREASE_RESERVATION, memory.RESERVATION_ARG, value)
    found = brief(guest)
    assert found[1] == "decrease_reservation"
    assert found[2]["extents"] == ["0x300", "0x301"]
    assert found[2]["domid"] == "self"
    assert found[4] == 2
    nowhere = NOWHERE & (1 << bits) - 1
    guest.op(nr.SCHED_OP, sched.POLL, sched.POLL_ARG, sched.Poll(nowhere, 3, 1))
    assert brief(guest)[2]["ports"] == f"{nowhere:#x} (not mapped)"


def test_memory_op_says_where_a_continued_call_goes_on() -> None:
    guest = TracedGuest()
    value = memory.Reservation(guest.store(bytes(64)), 4, 0, 0, DOMID_SELF)
    guest.op(nr.MEMORY_OP, memory.POPULATE_PHYSMAP | 2 << 6, memory.RESERVATION_ARG, value)
    found = guest.last()
    assert (found.op, found.args["start_extent"]) == ("populate_physmap", 2)


@BOTH
def test_grant_table_op(bits: int) -> None:
    guest = TracedGuest(bits=bits)
    value = grant_table.QuerySize(DOMID_SELF, 0, 0, 0)
    guest.op(nr.GRANT_TABLE_OP, grant_table.QUERY_SIZE, grant_table.QUERY_SIZE_ARG, value, 1)
    name, op, args, out, result, _ = brief(guest)
    assert (name, op, args, result) == ("grant_table_op", "query_size", {"count": 1, "dom": "self"}, 0)
    assert out["status"] == "okay"
    assert out["max_nr_frames"] > 0
    guest.op(nr.GRANT_TABLE_OP, grant_table.SET_VERSION, grant_table.SET_VERSION_ARG, grant_table.SetVersion(2), 1)
    assert brief(guest)[2:4] == ({"count": 1, "version": 2}, {"version": 2})


def test_hvm_op_vcpu_op_and_shutdown() -> None:
    guest = TracedGuest()
    param = hvm.Param(DOMID_SELF, hvm.PARAM_STORE_PFN, 0)
    guest.domain.params[hvm.PARAM_STORE_PFN] = 0xFEFFC
    guest.op(nr.HVM_OP, hvm.GET_PARAM, hvm.PARAM_ARG, param)
    assert brief(guest)[2:4] == ({"domid": "self", "number": "store_pfn"}, {"value": "0xfeffc"})
    guest.vcpu_op(vcpu.SET_SINGLESHOT_TIMER, 0, vcpu.SET_SINGLESHOT_TIMER_ARG, vcpu.SetSingleshotTimer(5, 1))
    assert brief(guest) == (
        "vcpu_op", "set_singleshot_timer", {"vcpu": 0, "timeout_abs_ns": 5, "flags": "0x1"}, {}, -62, "ETIME",
    )  # fmt: skip
    guest.op(nr.SCHED_OP, sched.SHUTDOWN, sched.SHUTDOWN_ARG, sched.Shutdown(sched.SHUTDOWN_CRASH))
    assert brief(guest)[2] == {"reason": "crash"}


def test_texts_and_versions() -> None:
    guest = TracedGuest()
    guest.call(nr.XEN_VERSION, version.VERSION, 0)
    assert guest.last().out == {"version": "4.17"}
    guest.call(nr.XEN_VERSION, version.EXTRAVERSION, guest.store(bytes(64)))
    assert guest.last().out["text"].startswith(".")
    guest.call(nr.CONSOLE_IO, nr.CONSOLE_WRITE, 4, guest.store(b"ab\n\xff"))
    assert guest.last().args == {"count": 4, "text": "ab\\n\\xff"}
    guest.call(nr.CONSOLE_IO, nr.CONSOLE_WRITE, 4, NOWHERE)
    assert brief(guest)[2:] == ({"count": 4, "text": f"{NOWHERE:#x} (not mapped)"}, {}, -14, "EFAULT")


@BOTH
def test_a_multicall_shows_its_calls_and_their_results(bits: int) -> None:
    guest = TracedGuest(bits=bits)
    entries = [
        nr.MulticallEntry(nr.XEN_VERSION, 0, version.VERSION, 0, 0, 0, 0, 0),
        nr.MulticallEntry(nr.SCHED_OP, 0, 99, 0, 0, 0, 0, 0),
    ]
    address = guest.store(b"".join(nr.MULTICALL_ENTRY.pack(entry, bits) for entry in entries))
    guest.call(nr.MULTICALL, address, 2)
    name, _, args, out, result, _ = brief(guest)
    assert (name, result) == ("multicall", 0)
    assert args == {"count": 2, "calls": ["xen_version.version", "sched_op"]}
    assert out == {"results": [4 << 16 | 17, "ENOSYS"]}


def test_calls_that_xen_does_not_know() -> None:
    guest = TracedGuest()
    guest.call(77, 1, 2)
    assert brief(guest)[0::4] == ("hypercall_77", -38)
    assert guest.call(nr.SCHED_OP, 99, 0) == -38
    assert brief(guest)[:2] == ("sched_op", "op_99")
    guest.call(26, 0)
    assert brief(guest)[0] == "mmuext_op"


def test_events_and_timers() -> None:
    guest = TracedGuest()
    guest.place_shared_info()
    _, ipi = guest.op(
        nr.EVENT_CHANNEL_OP, event_channel.BIND_IPI, event_channel.BIND_IPI_ARG, event_channel.BindIpi(1, 0)
    )
    virq = event_channel.BindVirq(event_channel.VIRQ_TIMER, 0, 0)
    guest.op(nr.EVENT_CHANNEL_OP, event_channel.BIND_VIRQ, event_channel.BIND_VIRQ_ARG, virq)
    guest.records()
    guest.op(nr.EVENT_CHANNEL_OP, event_channel.SEND, event_channel.PORT_ARG, event_channel.Port(ipi.port))
    event, send = guest.records()
    assert (event.kind, event.vcpu, event.args) == ("event", 1, {"port": ipi.port, "from": "ipi"})
    assert send.op == "send"
    guest.call(nr.SET_TIMER_OP, guest.machine.now)
    assert guest.last().args == {"timeout": guest.machine.now}
    guest.observed.timer_expired(0)
    event, timer = guest.records()
    assert event.args["from"] == "virq timer"
    assert (timer.kind, timer.name, timer.vcpu) == ("timer", "expired", 0)


def exit_record(reason: int, before: bytes, data: bytes) -> tuple[Any, ...]:
    found = decode((Kind.EXIT, 0, 5000, 1, reason, before.ljust(32, b"\0"), data), 0)
    assert kind_of((Kind.EXIT, 0, 0, 0, reason)) in (found.kind, "port")
    return found.kind, found.name, found.args, found.out, found.error


def test_exits() -> None:
    out = IO_EXIT.pack(1, 1, 0x70, 1, 4096)
    assert exit_record(Exit.IO, out, b"\x8f") == (
        "port", "out", {"port": "0x70 rtc", "size": 1, "value": "0x8f"}, {}, None,
    )  # fmt: skip
    read = IO_EXIT.pack(0, 2, 0x1234, 3, 4096)
    assert exit_record(Exit.IO, read, b"\xff" * 6) == (
        "port", "in", {"port": "0x1234", "size": 2, "count": 3}, {"value": "0xffff"}, None,
    )  # fmt: skip
    mmio = MMIO_EXIT.pack(0xFEC00000, b"\x01\x02" + bytes(6), 2, 1)
    assert exit_record(Exit.MMIO, mmio, mmio.ljust(32, b"\0"))[1:3] == (
        "write", {"address": "0xfec00000", "size": 2, "value": "0x201"},
    )  # fmt: skip
    rdmsr = MSR_EXIT.pack(0, 2, 0x10, 0)
    assert exit_record(Exit.RDMSR, rdmsr, MSR_EXIT.pack(0, 2, 0x10, 9).ljust(32, b"\0"))[1:] == (
        "rdmsr", {"msr": "0x10 TSC"}, {"value": "0x9"}, None,
    )  # fmt: skip
    wrmsr = MSR_EXIT.pack(0, 2, 0x123, 7)
    assert exit_record(Exit.WRMSR, wrmsr, MSR_EXIT.pack(1, 2, 0x123, 0).ljust(32, b"\0"))[1:] == (
        "wrmsr", {"msr": "0x123", "value": "0x7"}, {}, "#GP",
    )  # fmt: skip
    assert exit_record(Exit.INTR, b"", bytes(32))[:2] == ("exit", "kicked")
    assert exit_record(99, b"", bytes(32))[:2] == ("exit", "exit_99")
    assert exit_record(Exit.IO, IO_EXIT.pack(1, 4, 0xE8, 1, 4096), b"")[:2] == ("hypercall", "from_user_mode")


def test_requests_to_xenstore() -> None:
    def shown(op: int, request: bytes, kind: int, reply: bytes, tx: int = 0) -> tuple[Any, ...]:
        found = decode((Kind.XENSTORE, 0, 100, None, op, tx, request, kind, reply), 0)
        return found.name, found.args, found.out, found.error

    assert shown(Op.READ, b"name\0", Op.READ, b"web\n") == ("read", {"path": "name"}, {"value": "web\\n"}, None)
    assert shown(Op.WRITE, b"data/a\0x\0y", Op.WRITE, b"OK\0", 3) == (
        "write", {"transaction": 3, "path": "data/a", "value": "x y"}, {}, None,
    )  # fmt: skip
    assert shown(Op.RM, b"a\0", Op.ERROR, b"ENOENT\0") == ("rm", {"path": "a"}, {}, "ENOENT")
    assert shown(999, b"\xff", 999, b"")[:2] == ("op_999", {"payload": "\\xff"})


REGISTER = st.one_of(
    st.integers(0, 40), st.integers(0, SIZE), st.integers(0, 2**64 - 1), st.just(NOWHERE), st.just(SIZE - 2)
)


@settings(deadline=None, max_examples=400)
@given(
    st.sampled_from([*TABLE, 0, 55, 2**32 - 1]),
    st.lists(REGISTER, min_size=6, max_size=6),
    st.sampled_from([64, 32]),
    st.binary(min_size=64, max_size=64),
)
def test_nonsense_is_traced_without_a_word_of_complaint(
    number: int, args: list[int], bits: int, filling: bytes
) -> None:
    guest = TracedGuest(bits=bits)
    guest.memory.view(0, SIZE)[:] = filling * (SIZE // 64)
    if number == nr.SCHED_OP and args[0] & 0xFFFFFFFF in (sched.BLOCK, sched.POLL):
        guest.domain.vcpus[0].info.view[guest.domain.vcpus[0].info_offset] = 1
    guest.call(number, *args)
    found = guest.last()
    assert msgspec.json.decode(msgspec.json.encode(found))["kind"] == "hypercall"


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 60), st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
def test_exits_of_any_content_are_decoded(reason: int, before: bytes, data: bytes) -> None:
    if reason == Exit.IO:
        data = data[: before[1]]
    msgspec.json.encode(decode((Kind.EXIT, 0, 0, 0, reason, before, data), 0))


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 2**32 - 1) | st.sampled_from(list(Op)), st.binary(max_size=256), st.binary(max_size=256))
def test_xenstore_messages_of_any_content_are_decoded(op: int, request: bytes, reply: bytes) -> None:
    for kind in (op, Op.ERROR):
        msgspec.json.encode(decode((Kind.XENSTORE, 0, 0, None, op, 0, request, kind, reply), 0))

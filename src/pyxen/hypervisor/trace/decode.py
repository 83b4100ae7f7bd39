"""Raw records into api.TraceRecord: names for numbers, fields for structures. Nothing a guest wrote makes it fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from pyxen.abi import hypercall as nr
from pyxen.abi import memory
from pyxen.abi.layout import Layout
from pyxen.abi.xs_text import escape
from pyxen.abi.xs_wire import Op
from pyxen.api import TraceRecord
from pyxen.hypervisor.kvm.uapi import IO_EXIT, MMIO_EXIT, MSR_EXIT, Exit
from pyxen.hypervisor.trace import words
from pyxen.hypervisor.trace.calls import COMPAT_SIZE, OPS, Args, Call, find
from pyxen.hypervisor.trace.observed import Kind
from pyxen.hypervisor.trace.ring import Record

_PAYLOAD_SHOWN: Final = 80


def decode(record: Record, origin_ns: int) -> TraceRecord:
    """``origin_ns`` is when time 0 was."""
    kind, began, took, vcpu = record[:4]
    found = _DECODERS[kind](*record[4:])
    found.time_s = round((began - origin_ns) / 1e9, 6)
    found.vcpu = vcpu
    if took is not None:
        found.us = round(took / 1e3, 1)
    return found


def kind_of(record: Record) -> str:
    """Its kind in words, without the cost of decoding it."""
    if record[0] == Kind.EXIT:
        return _EXIT_KINDS.get(record[4], "exit")
    return _KINDS[record[0]]


_EXIT_KINDS: Final = {Exit.IO: "port", Exit.MMIO: "mmio", Exit.RDMSR: "msr", Exit.WRMSR: "msr"}
_KINDS: Final = {Kind.HYPERCALL: "hypercall", Kind.EVENT: "event", Kind.TIMER: "timer", Kind.XENSTORE: "xenstore"}


# Hypercalls


def _hypercall(
    number: int,
    args: Args,
    bits: int,
    before: tuple[bytes | None, bytes | None] | None,
    after: bytes | None,
    result: int,
) -> TraceRecord:
    call = find(number, args)
    found = TraceRecord("hypercall", words.HYPERCALLS.get(number, f"hypercall_{number}"))
    found.result, found.error = result, words.errno_name(result)
    data, more = before or (None, None)
    if number in OPS:
        found.op = call.op or f"op_{args[0] & 0xFFFFFFFF}"
    elif number == nr.EVENT_CHANNEL_OP_COMPAT:
        _compat(found, args, more, after)
        return found
    elif number not in words.HYPERCALLS:
        found.args = {f"arg{index}": hex(arg) for index, arg in enumerate(args[:5])}
    _registers(found, call, number, args, bits)
    if call.layout is not None:
        width = 64 if call.same else bits
        if data is None:
            found.args["pointer"] = _nowhere(args[call.at])
        else:
            fields = _fields(call.layout, data, width, number)
            found.args |= {key: fields[key] for key in fields if key not in call.outputs or key in call.inputs}
        if after is not None and (result >= 0 or number == nr.GRANT_TABLE_OP):
            fields = _fields(call.layout, after, width, number)
            found.out = {key: fields[key] for key in call.outputs}
    elif call.answer and after is not None and result >= 0:
        found.out = {"text": escape(after.partition(b"\0")[0])}
    if (special := _SPECIAL.get((number, call.op))) is not None:
        special(found, args, bits, data, more, after)
    return found


def _registers(found: TraceRecord, call: Call, number: int, args: Args, bits: int) -> None:
    for name, index in call.registers:
        found.args[name] = args[index] & 0xFFFFFFFF
    if number == nr.SET_TIMER_OP:
        found.args["timeout"] = args[0] if bits == 64 else args[0] | args[1] << 32
    if number == nr.MEMORY_OP and (start := (args[0] & 0xFFFFFFFF) >> memory.START_EXTENT_SHIFT):
        found.args["start_extent"] = start


def _nowhere(address: int) -> str:
    return f"{address:#x} (not mapped)"


def _fields(layout: Layout[Any], data: bytes, bits: int, number: int) -> dict[str, Any]:
    values = layout.unpack(data, bits)
    return {
        name: _value(name, value, number)
        for name, value in zip(layout.names, values, strict=True)
        if not name.startswith(("pad", "reserved"))
    }


def _value(name: str, value: Any, number: int) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if name == "status" and number == nr.GRANT_TABLE_OP:
        return words.GRANT_STATUS.get(value, value)
    if name in ("status", "number"):
        table = words.EVENT_STATUS if name == "status" else words.PARAMS
        return table.get(value, value)
    table = words.FIELDS.get(name, {})
    return table[value] if value in table else hex(value) if name in words.HEXADECIMAL else value


_Special = Callable[[TraceRecord, Args, int, bytes | None, bytes | None, bytes | None], None]


def _numbers(data: bytes, width: int) -> list[int]:
    return [int.from_bytes(data[at : at + width], "little") for at in range(0, len(data) // width * width, width)]


def _poll(
    found: TraceRecord, args: Args, bits: int, data: bytes | None, more: bytes | None, after: bytes | None
) -> None:
    if data is None:
        return
    ports = found.args["ports"]
    found.args["ports"] = _nowhere(ports) if more is None else _numbers(more, 4)


def _extents(
    found: TraceRecord, args: Args, bits: int, data: bytes | None, more: bytes | None, after: bytes | None
) -> None:
    if data is None:
        return
    start = found.args.pop("extent_start")
    found.args["extents"] = f"{start} (not mapped)" if more is None else [hex(gfn) for gfn in _numbers(more, bits // 8)]


def _console(
    found: TraceRecord, args: Args, bits: int, data: bytes | None, more: bytes | None, after: bytes | None
) -> None:
    found.args["text"] = _nowhere(args[2]) if more is None else escape(more)


def _multicall(
    found: TraceRecord, args: Args, bits: int, data: bytes | None, more: bytes | None, after: bytes | None
) -> None:
    if more is None:
        found.args["pointer"] = _nowhere(args[0])
        return
    size = nr.MULTICALL_ENTRY.size(bits)
    calls, results = [], []
    for at in range(0, len(more) // size * size, size):
        entry = nr.MULTICALL_ENTRY.unpack(more, bits, at)
        name = words.HYPERCALLS.get(entry.op, f"hypercall_{entry.op}")
        op = find(entry.op, tuple(entry[2:])).op
        calls.append(f"{name}.{op}" if op else name)
        if after is not None and found.result == 0:
            result = nr.MULTICALL_ENTRY.unpack(after, bits, at).result
            signed = result - (1 << bits) if result >> (bits - 1) else result
            results.append(words.errno_name(signed) or signed)
    found.args["calls"] = calls
    if results:
        found.out = {"results": results}


def _platform_parameters(
    found: TraceRecord, args: Args, bits: int, data: bytes | None, more: bytes | None, after: bytes | None
) -> None:
    if "address" in found.out:
        found.out = {"virt_start": found.out["address"]}


def _version(
    found: TraceRecord, args: Args, bits: int, data: bytes | None, more: bytes | None, after: bytes | None
) -> None:
    if found.result is not None and found.result >= 0:
        found.out = {"version": f"{found.result >> 16}.{found.result & 0xFFFF}"}


_SPECIAL: Final[dict[tuple[int, str], _Special]] = {
    (nr.SCHED_OP, "poll"): _poll,
    (nr.MEMORY_OP, "increase_reservation"): _extents,
    (nr.MEMORY_OP, "decrease_reservation"): _extents,
    (nr.MEMORY_OP, "populate_physmap"): _extents,
    (nr.CONSOLE_IO, "write"): _console,
    (nr.MULTICALL, ""): _multicall,
    (nr.XEN_VERSION, "platform_parameters"): _platform_parameters,
    (nr.XEN_VERSION, "version"): _version,
}


def _compat(found: TraceRecord, args: Args, before: bytes | None, after: bytes | None) -> None:
    """The old event_channel_op: {operation, its structure}."""
    if before is None or len(before) < COMPAT_SIZE:
        found.args["pointer"] = _nowhere(args[0])
        return
    cmd = int.from_bytes(before[:4], "little")
    call = OPS[nr.EVENT_CHANNEL_OP].get(cmd)
    found.op = call.op if call is not None else f"op_{cmd}"
    if call is None or call.layout is None:
        return
    fields = _fields(call.layout, before[4:], 64, nr.EVENT_CHANNEL_OP)
    found.args = {key: fields[key] for key in fields if key not in call.outputs}
    if after is not None and len(after) == COMPAT_SIZE and found.result == 0:
        fields = _fields(call.layout, after[4:], 64, nr.EVENT_CHANNEL_OP)
        found.out = {key: fields[key] for key in call.outputs}


# Exits


def _exit(reason: int, before: bytes, data: bytes) -> TraceRecord:
    if reason == Exit.IO:
        return _port(before, data)
    if reason == Exit.MMIO:
        address, _, length, is_write = MMIO_EXIT.unpack_from(before)
        value = int.from_bytes(data[8 : 8 + min(length, 8)], "little")
        where = {"address": hex(address), "size": length}
        return _moved("mmio", bool(is_write), "write", "read", where, value)
    if reason in (Exit.RDMSR, Exit.WRMSR):
        return _msr(reason, before, data)
    try:
        name = Exit(reason).name.lower()
    except ValueError:
        name = f"exit_{reason}"
    return TraceRecord("exit", _EXIT_NAMES.get(name, name))


_EXIT_NAMES: Final = {"intr": "kicked", "shutdown": "triple_fault"}


def _port(before: bytes, data: bytes) -> TraceRecord:
    direction, size, port, count, _ = IO_EXIT.unpack_from(before)
    name = words.PORTS.get(port)
    where: dict[str, Any] = {"port": f"{port:#x} {name}" if name else hex(port), "size": size}
    if count > 1:
        where["count"] = count
    found = _moved("port", bool(direction), "out", "in", where, int.from_bytes(data[:size], "little"))
    if name == "hypercall":
        # Xen's side is asked for those of the kernel only.
        found.kind, found.name, found.args, found.out = "hypercall", "from_user_mode", {}, {}
        found.result, found.error = -1, "EPERM"
    return found


def _msr(reason: int, before: bytes, data: bytes) -> TraceRecord:
    _, _, index, value = MSR_EXIT.unpack_from(before)
    failed, _, _, answer = MSR_EXIT.unpack_from(data)
    name = words.MSRS.get(index)
    where = {"msr": f"{index:#x} {name}" if name else hex(index)}
    found = _moved("msr", reason == Exit.WRMSR, "wrmsr", "rdmsr", where, value if reason == Exit.WRMSR else answer)
    if failed:
        found.out, found.error = {}, "#GP"
    return found


def _moved(kind: str, write: bool, writes: str, reads: str, where: dict[str, Any], value: int) -> TraceRecord:
    """Something that was written, or read."""
    if write:
        return TraceRecord(kind, writes, args={**where, "value": hex(value)})
    return TraceRecord(kind, reads, args=where, out={"value": hex(value)})


# The rest


def _event(port: int, state: int, virq: int, remote: int) -> TraceRecord:
    bound = words.EVENT_STATES.get(state, str(state))
    if bound == "virq":
        bound = f"virq {words.FIELDS['virq'].get(virq, virq)}"
    elif bound == "interdomain":
        bound = f"domain {remote}"
    return TraceRecord("event", "raise", args={"port": port, "from": bound})


def _timer() -> TraceRecord:
    return TraceRecord("timer", "expired")


def _xenstore(op: int, tx: int, request: bytes, kind: int, reply: bytes) -> TraceRecord:
    try:
        name = Op(op).name.lower()
    except ValueError:
        name = f"op_{op}"
    found = TraceRecord("xenstore", name)
    if tx:
        found.args["transaction"] = tx
    if op in _PATH_FIRST:
        path, _, rest = request.partition(b"\0")
        found.args["path"] = escape(path)
        if rest:
            found.args[_PATH_FIRST[op]] = _shown(rest)
    elif request.rstrip(b"\0"):
        found.args["payload"] = _shown(request)
    if kind == Op.ERROR:
        found.error = _shown(reply)
    elif reply not in (b"OK\0", b""):
        found.out = {"value": _shown(reply)}
    return found


_PATH_FIRST: Final[dict[int, str]] = {
    Op.DIRECTORY: "rest",
    Op.DIRECTORY_PART: "offset",
    Op.READ: "rest",
    Op.GET_PERMS: "rest",
    Op.SET_PERMS: "permissions",
    Op.WRITE: "value",
    Op.MKDIR: "rest",
    Op.RM: "rest",
    Op.WATCH: "token",
    Op.UNWATCH: "token",
    Op.WATCH_EVENT: "token",
}
"""Requests that begin with a path, and what follows it."""


def _shown(payload: bytes) -> str:
    text = escape(payload.rstrip(b"\0").replace(b"\0", b" "))
    return text if len(text) <= _PAYLOAD_SHOWN else text[:_PAYLOAD_SHOWN] + "…"


_DECODERS: Final[dict[int, Callable[..., TraceRecord]]] = {
    Kind.HYPERCALL: _hypercall,
    Kind.EXIT: _exit,
    Kind.EVENT: _event,
    Kind.TIMER: _timer,
    Kind.XENSTORE: _xenstore,
}

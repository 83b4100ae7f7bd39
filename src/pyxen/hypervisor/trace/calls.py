"""How each hypercall's arguments are read: which structure lies behind which register, and what more is worth a look.

The structures are those of pyxen.abi. Names are Xen's: the hypercall's, and of its sub-operations the constants' in
small letters without their prefix (``EVTCHNOP_send`` is ``event_channel_op.send``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, Final, NamedTuple

from pyxen.abi import event_channel, grant_table, hvm, memory, physdev, sched, vcpu, version
from pyxen.abi import hypercall as nr
from pyxen.abi.layout import Layout, Pointer

Args = tuple[int, ...]
Place = tuple[int, int]
"""Address and length in bytes."""

_MOST_TEXT: Final = 64
_MOST_PORTS: Final = 8
_MOST_EXTENTS: Final = 4
MOST_ENTRIES: Final = 8
"""Of a multicall."""
COMPAT_SIZE: Final = 4 + event_channel.STATUS_ARG.size64
"""The old event_channel_op: the operation's number and the largest of its structures."""


class Area(NamedTuple):
    """A pointer to where Xen is to write."""

    address: Pointer


_AREA: Final = Layout(Area)


class Call(NamedTuple):
    """One operation of one hypercall."""

    op: str
    layout: Layout[Any] | None = None
    """The structure that register ``at`` points to."""
    at: int = 1
    same: bool = False
    """Laid out for 64 bits whoever calls."""
    outputs: tuple[str, ...] = ()
    """The fields that Xen writes."""
    inputs: tuple[str, ...] = ()
    """Those of ``outputs`` that it reads too."""
    more: Callable[[Args, bytes, int], Place] | None = None
    """From registers, structure and mode: further bytes to be read at the call."""
    again: bool = False
    """And once more after it, as Xen answers there."""
    answer: int = 0
    """So many bytes at the pointer are text that Xen writes."""
    registers: tuple[tuple[str, int], ...] = ()
    """Arguments that are in registers, and in which ones."""


def _poll_ports(args: Args, data: bytes, bits: int) -> Place:
    poll = sched.POLL_ARG.unpack(data, bits)
    return poll.ports, 4 * min(poll.nr_ports, _MOST_PORTS)


def _extents(args: Args, data: bytes, bits: int) -> Place:
    op = memory.RESERVATION_ARG.unpack(data, bits)
    return op.extent_start, bits // 8 * min(op.nr_extents, _MOST_EXTENTS)


def _console_text(args: Args, data: bytes, bits: int) -> Place:
    return args[2], min(args[1] & 0xFFFFFFFF, _MOST_TEXT)


def _compat(args: Args, data: bytes, bits: int) -> Place:
    return args[0], COMPAT_SIZE


def _multicall_entries(args: Args, data: bytes, bits: int) -> Place:
    return args[0], nr.MULTICALL_ENTRY.size(bits) * min(args[1] & 0xFFFFFFFF, MOST_ENTRIES)


_COUNT: Final = (("count", 2),)
_TARGET: Final = (("vcpu", 1),)


def _named(module: ModuleType, numbers: Mapping[str, Call | None]) -> dict[int, Call]:
    """By number: each key names a constant of ``module``, and the operation after it."""
    return {getattr(module, name): (call or Call(""))._replace(op=name.lower()) for name, call in numbers.items()}


_MEMORY = _named(
    memory,
    {
        "INCREASE_RESERVATION": Call("", memory.RESERVATION_ARG, more=_extents),
        "DECREASE_RESERVATION": Call("", memory.RESERVATION_ARG, more=_extents),
        "POPULATE_PHYSMAP": Call("", memory.RESERVATION_ARG, more=_extents),
        "MAXIMUM_RAM_PAGE": None,
        "CURRENT_RESERVATION": Call("", memory.DOMAIN_ID_ARG),
        "MAXIMUM_RESERVATION": Call("", memory.DOMAIN_ID_ARG),
        "MACHPHYS_MFN_LIST": None,
        "ADD_TO_PHYSMAP": Call("", memory.ADD_TO_PHYSMAP_ARG),
        "MEMORY_MAP": Call("", memory.MEMORY_MAP_ARG, outputs=("nr_entries",), inputs=("nr_entries",)),
        "MACHINE_MEMORY_MAP": None,
        "EXCHANGE": None,
        "MACHPHYS_MAPPING": None,
        "SET_MEMORY_MAP": None,
        "MAXIMUM_GPFN": Call("", memory.DOMAIN_ID_ARG),
        "REMOVE_FROM_PHYSMAP": Call("", memory.REMOVE_FROM_PHYSMAP_ARG),
        "SET_POD_TARGET": None,
        "GET_POD_TARGET": None,
        "ADD_TO_PHYSMAP_BATCH": Call("", memory.ADD_TO_PHYSMAP_BATCH_ARG),
        "CLAIM_PAGES": None,
        "GET_VNUMAINFO": None,
        "ACQUIRE_RESOURCE": None,
    },
)
_VERSION = _named(
    version,
    {
        "VERSION": None,
        "EXTRAVERSION": Call("", answer=version.EXTRAVERSION_SIZE),
        "COMPILE_INFO": Call("", answer=_MOST_TEXT),
        "CAPABILITIES": Call("", answer=_MOST_TEXT),
        "CHANGESET": Call("", answer=version.CHANGESET_SIZE),
        "PLATFORM_PARAMETERS": Call("", _AREA, outputs=("address",)),
        "GET_FEATURES": Call("", version.FEATURE_INFO, same=True, outputs=("submap",)),
        "PAGESIZE": None,
        "GUEST_HANDLE": None,
        "COMMANDLINE": None,
        "BUILD_ID": None,
    },
)
_GRANTS = _named(
    grant_table,
    {
        "MAP_GRANT_REF": Call("", grant_table.MAP_GRANT_REF_ARG, outputs=("status", "handle"), registers=_COUNT),
        "UNMAP_GRANT_REF": Call("", grant_table.UNMAP_GRANT_REF_ARG, outputs=("status",), registers=_COUNT),
        "SETUP_TABLE": Call("", grant_table.SETUP_TABLE_ARG, outputs=("status",), registers=_COUNT),
        "DUMP_TABLE": None,
        "TRANSFER": None,
        "COPY": Call("", grant_table.COPY_ARG, outputs=("status",), registers=_COUNT),
        "QUERY_SIZE": Call(
            "",
            grant_table.QUERY_SIZE_ARG,
            outputs=("nr_frames", "max_nr_frames", "status"),
            registers=_COUNT,
        ),
        "UNMAP_AND_REPLACE": Call("", grant_table.UNMAP_GRANT_REF_ARG, outputs=("status",), registers=_COUNT),
        "SET_VERSION": Call(
            "", grant_table.SET_VERSION_ARG, outputs=("version",), inputs=("version",), registers=_COUNT
        ),
        "GET_STATUS_FRAMES": Call("", grant_table.GET_STATUS_FRAMES_ARG, outputs=("status",), registers=_COUNT),
        "GET_VERSION": Call("", grant_table.GET_VERSION_ARG, outputs=("version",), registers=_COUNT),
        "SWAP_GRANT_REF": Call("", grant_table.SWAP_GRANT_REF_ARG, outputs=("status",), registers=_COUNT),
        "CACHE_FLUSH": Call("", grant_table.CACHE_FLUSH_ARG, registers=_COUNT),
    },
)
_VCPU = {
    cmd: call._replace(at=2, registers=_TARGET)
    for cmd, call in _named(
        vcpu,
        {
            "INITIALISE": Call("", vcpu.CONTEXT_HEADER, same=True),
            "UP": None,
            "DOWN": None,
            "IS_UP": None,
            "GET_RUNSTATE_INFO": Call("", vcpu.RUNSTATE_INFO, outputs=vcpu.RUNSTATE_INFO.names),
            "REGISTER_RUNSTATE_MEMORY_AREA": Call("", _AREA),
            "SET_PERIODIC_TIMER": Call("", vcpu.SET_PERIODIC_TIMER_ARG),
            "STOP_PERIODIC_TIMER": None,
            "SET_SINGLESHOT_TIMER": Call("", vcpu.SET_SINGLESHOT_TIMER_ARG),
            "STOP_SINGLESHOT_TIMER": None,
            "REGISTER_VCPU_INFO": Call("", vcpu.REGISTER_VCPU_INFO_ARG),
            "SEND_NMI": None,
            "GET_PHYSID": None,
            "REGISTER_VCPU_TIME_MEMORY_AREA": Call("", _AREA),
            "REGISTER_RUNSTATE_PHYS_AREA": Call("", vcpu.REGISTER_AREA_ARG, same=True),
            "REGISTER_VCPU_TIME_PHYS_AREA": Call("", vcpu.REGISTER_AREA_ARG, same=True),
        },
    ).items()
}
_SCHED = _named(
    sched,
    {
        "YIELD": None,
        "BLOCK": None,
        "SHUTDOWN": Call("", sched.SHUTDOWN_ARG),
        "POLL": Call("", sched.POLL_ARG, more=_poll_ports),
        "REMOTE_SHUTDOWN": Call("", sched.REMOTE_SHUTDOWN_ARG),
        "SHUTDOWN_CODE": Call("", sched.SHUTDOWN_ARG),
        "WATCHDOG": Call("", sched.WATCHDOG_ARG),
        "PIN_OVERRIDE": None,
    },
)
_EVENTS = {
    cmd: call._replace(same=True)
    for cmd, call in _named(
        event_channel,
        {
            "BIND_INTERDOMAIN": Call("", event_channel.BIND_INTERDOMAIN_ARG, outputs=("local_port",)),
            "BIND_VIRQ": Call("", event_channel.BIND_VIRQ_ARG, outputs=("port",)),
            "BIND_PIRQ": None,
            "CLOSE": Call("", event_channel.PORT_ARG),
            "SEND": Call("", event_channel.PORT_ARG),
            "STATUS": Call("", event_channel.STATUS_ARG, outputs=("status", "vcpu", "word0", "word1")),
            "ALLOC_UNBOUND": Call("", event_channel.ALLOC_UNBOUND_ARG, outputs=("port",)),
            "BIND_IPI": Call("", event_channel.BIND_IPI_ARG, outputs=("port",)),
            "BIND_VCPU": Call("", event_channel.BIND_VCPU_ARG),
            "UNMASK": Call("", event_channel.PORT_ARG),
            "RESET": Call("", event_channel.RESET_ARG),
            "INIT_CONTROL": Call("", event_channel.INIT_CONTROL_ARG, outputs=("link_bits",)),
            "EXPAND_ARRAY": Call("", event_channel.EXPAND_ARRAY_ARG),
            "SET_PRIORITY": Call("", event_channel.SET_PRIORITY_ARG),
            "RESET_CONT": None,
        },
    ).items()
}
_HVM = {
    cmd: call._replace(same=True)
    for cmd, call in _named(
        hvm,
        {
            "SET_PARAM": Call("", hvm.PARAM_ARG),
            "GET_PARAM": Call("", hvm.PARAM_ARG, outputs=("value",)),
            "FLUSH_TLBS": None,
            "PAGETABLE_DYING": Call("", hvm.PAGETABLE_DYING_ARG),
            "GET_TIME": Call("", hvm.GET_TIME_ARG, outputs=("now",)),
            "XENTRACE": None,
            "GET_MEM_TYPE": Call("", hvm.GET_MEM_TYPE_ARG, outputs=("mem_type",)),
            "SET_EVTCHN_UPCALL_VECTOR": Call("", hvm.EVTCHN_UPCALL_VECTOR_ARG),
            "GUEST_REQUEST_VM_EVENT": None,
            "ALTP2M": None,
        },
    ).items()
}
_ASSIST = {
    nr.VM_ASSIST_ENABLE: Call("enable", registers=(("type", 1),)),
    nr.VM_ASSIST_DISABLE: Call("disable", registers=(("type", 1),)),
}
_CONSOLE = {
    nr.CONSOLE_WRITE: Call("write", more=_console_text, registers=(("count", 1),)),
    nr.CONSOLE_READ: Call("read", registers=(("count", 1),)),
}
_PHYSDEV = _named(
    physdev,
    dict.fromkeys(
        ("IRQ_STATUS_QUERY", "EOI", "MAP_PIRQ", "UNMAP_PIRQ", "PIRQ_EOI_GMFN_V1", "GET_FREE_PIRQ", "PIRQ_EOI_GMFN_V2")
    ),
)

OPS: Final[dict[int, dict[int, Call]]] = {
    nr.MEMORY_OP: _MEMORY,
    nr.XEN_VERSION: _VERSION,
    nr.CONSOLE_IO: _CONSOLE,
    nr.GRANT_TABLE_OP: _GRANTS,
    nr.VM_ASSIST: _ASSIST,
    nr.VCPU_OP: _VCPU,
    nr.SCHED_OP: _SCHED,
    nr.EVENT_CHANNEL_OP: _EVENTS,
    nr.PHYSDEV_OP: _PHYSDEV,
    nr.HVM_OP: _HVM,
}
"""Hypercalls whose first register says which operation is meant."""

PLAIN: Final[dict[int, Call]] = {
    nr.MULTICALL: Call("", more=_multicall_entries, again=True, registers=(("count", 1),)),
    nr.SET_TIMER_OP: Call("", registers=(("timeout", 0),)),
    nr.EVENT_CHANNEL_OP_COMPAT: Call("", more=_compat, again=True),
}
"""Hypercalls that do one thing."""

_CMD_MASKS: Final = {nr.MEMORY_OP: memory.CMD_MASK}
_UNKNOWN: Final = Call("")


def find(number: int, args: Args) -> Call:
    """The operation that these registers ask for; one without a name where Xen knows none."""
    ops = OPS.get(number)
    if ops is None:
        return PLAIN.get(number, _UNKNOWN)
    cmd = args[0] & _CMD_MASKS.get(number, 0xFFFFFFFF)
    return ops.get(cmd) or _UNKNOWN

"""Event channels: xen/include/public/event_channel.h, and the VIRQs of xen.h."""

from __future__ import annotations

from typing import Annotated, Final, NamedTuple

from pyxen.abi.layout import U8, U16, U32, U64, Layout, byte_string

BIND_INTERDOMAIN: Final = 0
BIND_VIRQ: Final = 1
BIND_PIRQ: Final = 2
CLOSE: Final = 3
SEND: Final = 4
STATUS: Final = 5
ALLOC_UNBOUND: Final = 6
BIND_IPI: Final = 7
BIND_VCPU: Final = 8
UNMASK: Final = 9
RESET: Final = 10
INIT_CONTROL: Final = 11
EXPAND_ARRAY: Final = 12
SET_PRIORITY: Final = 13
RESET_CONT: Final = 14

STATUS_CLOSED: Final = 0
STATUS_UNBOUND: Final = 1
STATUS_INTERDOMAIN: Final = 2
STATUS_PIRQ: Final = 3
STATUS_VIRQ: Final = 4
STATUS_IPI: Final = 5

VIRQ_TIMER: Final = 0
VIRQ_DEBUG: Final = 1
VIRQ_CONSOLE: Final = 2
VIRQ_XENOPROF: Final = 7
VIRQ_ARGO: Final = 11
VIRQ_XENPMU: Final = 13
NR_VIRQS: Final = 24
PER_VCPU_VIRQS: Final = frozenset({VIRQ_TIMER, VIRQ_DEBUG, VIRQ_XENOPROF, VIRQ_XENPMU})
PER_DOMAIN_VIRQS: Final = frozenset({VIRQ_ARGO})
"""Bound at VCPU 0 first. All others that are not per VCPU are global: they belong to one domain, Domain-0."""

MAX_PORTS_2L_64: Final = 4096
MAX_PORTS_2L_32: Final = 1024
MAX_PORTS_FIFO: Final = 1 << 17

FIFO_LINK_BITS: Final = 17
FIFO_LINK_MASK: Final = (1 << FIFO_LINK_BITS) - 1
FIFO_PENDING: Final = 31
FIFO_MASKED: Final = 30
FIFO_LINKED: Final = 29
FIFO_BUSY: Final = 28
FIFO_PRIORITY_MAX: Final = 0
FIFO_PRIORITY_DEFAULT: Final = 7
FIFO_PRIORITY_MIN: Final = 15
FIFO_WORDS_PER_PAGE: Final = 1024
FIFO_CONTROL_READY: Final = 0
FIFO_CONTROL_HEADS: Final = 8
FIFO_CONTROL_SIZE: Final = 8 + 4 * 16
"""struct evtchn_fifo_control_block: ready, padding, the heads of 16 queues."""


class BindInterdomain(NamedTuple):
    remote_dom: U16
    remote_port: U32
    local_port: U32


class BindVirq(NamedTuple):
    virq: U32
    vcpu: U32
    port: U32


class Port(NamedTuple):
    """struct evtchn_close, _send and _unmask."""

    port: U32


class Status(NamedTuple):
    """struct evtchn_status; ``word0`` and ``word1`` are its union."""

    dom: U16
    port: U32
    status: U32
    vcpu: U32
    word0: U32
    word1: U32


class AllocUnbound(NamedTuple):
    dom: U16
    remote_dom: U16
    port: U32


class BindIpi(NamedTuple):
    vcpu: U32
    port: U32


class BindVcpu(NamedTuple):
    port: U32
    vcpu: U32


class Reset(NamedTuple):
    dom: U16


class InitControl(NamedTuple):
    control_gfn: U64
    offset: U32
    vcpu: U32
    link_bits: U8
    pad: Annotated[bytes, byte_string(7)]


class ExpandArray(NamedTuple):
    array_gfn: U64


class SetPriority(NamedTuple):
    port: U32
    priority: U32


BIND_INTERDOMAIN_ARG: Final = Layout(BindInterdomain)
BIND_VIRQ_ARG: Final = Layout(BindVirq)
PORT_ARG: Final = Layout(Port)
STATUS_ARG: Final = Layout(Status)
ALLOC_UNBOUND_ARG: Final = Layout(AllocUnbound)
BIND_IPI_ARG: Final = Layout(BindIpi)
BIND_VCPU_ARG: Final = Layout(BindVcpu)
RESET_ARG: Final = Layout(Reset)
INIT_CONTROL_ARG: Final = Layout(InitControl)
EXPAND_ARRAY_ARG: Final = Layout(ExpandArray)
SET_PRIORITY_ARG: Final = Layout(SetPriority)

"""The hooks that are in place while somebody looks: raw tuples into the ring, by whoever runs the guest.

What a pointer of the guest's leads to is copied at the call, and again after it where Xen answers there; nothing is
made of it here. A guest that points nowhere is no reason to fail.
"""

from __future__ import annotations

import enum
import time
from contextlib import AbstractContextManager
from typing import Final

from pyxen.hypervisor.domain import Domain
from pyxen.hypervisor.evtchn.channels import Channel
from pyxen.hypervisor.hypercalls import guest
from pyxen.hypervisor.memory import BadAddress
from pyxen.hypervisor.trace.calls import Args, Call, find
from pyxen.hypervisor.trace.ring import Ring
from pyxen.hypervisor.vcpu import Vcpu

_now = time.perf_counter_ns
_MOST_PAYLOAD: Final = 256
"""Bytes of a xenstore message."""


class Kind(enum.IntEnum):
    """What a record is about; the rest of it is what the method of the same name puts."""

    HYPERCALL = 0
    EXIT = 1
    EVENT = 2
    TIMER = 3
    XENSTORE = 4


class Observed:
    """``domain`` as its machine sees it (kvm_machine.XenSide), with everything that passes noted in ``ring``."""

    def __init__(self, domain: Domain, ring: Ring) -> None:
        self._domain = domain
        self._ring = ring
        self.params = domain.params

    @property
    def lock(self) -> AbstractContextManager[object, bool | None]:
        return self._domain.lock

    def hypercall(self, vcpu_index: int, nr: int, args: Args, bits: int) -> int:
        """(…, number, registers, mode, (structure, what lies behind it), structure or text afterwards, result)."""
        domain = self._domain
        vcpu = domain.vcpus[vcpu_index]
        if bits == 32:
            args = tuple([arg & 0xFFFFFFFF for arg in args])
        call = find(nr, args)
        before = _before(vcpu, call, args, bits) if call.layout is not None or call.more is not None else None
        began = _now()
        result = domain.hypercall(vcpu_index, nr, args, bits)
        took = _now() - began
        after = _after(vcpu, call, args, bits) if call.outputs or call.answer or call.again else None
        self._ring.put((Kind.HYPERCALL, began, took, vcpu_index, nr, args, bits, before, after, result))
        return result

    def timer_expired(self, vcpu: int) -> None:
        """Nothing more."""
        began = _now()
        self._domain.timer_expired(vcpu)
        self._ring.put((Kind.TIMER, began, _now() - began, vcpu))

    def kick(self, vcpu: int) -> None:
        self._domain.kick(vcpu)

    def check_upcall(self, vcpu: int) -> None:
        self._domain.check_upcall(vcpu)

    def stop(self, reason: int) -> None:
        self._domain.stop(reason)

    # Observers of others

    def exit(self, vcpu: int, reason: int, began: int, took: int, before: bytes, data: bytes) -> None:
        """(…, Exit, the union of kvm_run before, what was read or written)."""
        self._ring.put((Kind.EXIT, began, took, vcpu, reason, before, data))

    def event(self, channel: Channel) -> None:
        """(…, port, State, VIRQ, the domain at the other end)."""
        record = (Kind.EVENT, _now(), None, channel.vcpu, channel.port, channel.state, channel.virq, channel.remote)
        self._ring.put(record)

    def xenstore(self, began: int, took: int, op: int, tx: int, payload: bytes, kind: int, reply: bytes) -> None:
        """(…, Op, transaction, the request's payload, its answer's Op and payload)."""
        request, answer = payload[:_MOST_PAYLOAD], reply[:_MOST_PAYLOAD]
        self._ring.put((Kind.XENSTORE, began, took, None, op, tx, request, kind, answer))


def _read(vcpu: Vcpu, address: int, length: int) -> bytes | None:
    """A copy of the guest's bytes; None if they aren't there."""
    try:
        return bytes(guest.read(vcpu, address, length)) if length else b""
    except BadAddress:
        return None


def _before(vcpu: Vcpu, call: Call, args: Args, bits: int) -> tuple[bytes | None, bytes | None]:
    data: bytes | None = b""
    if call.layout is not None:
        data = _read(vcpu, args[call.at], call.layout.size(64 if call.same else bits))
    if data is None or call.more is None:
        return data, None
    return data, _read(vcpu, *call.more(args, data, bits))


def _after(vcpu: Vcpu, call: Call, args: Args, bits: int) -> bytes | None:
    if call.outputs and call.layout is not None:
        return _read(vcpu, args[call.at], call.layout.size(64 if call.same else bits))
    if call.again and call.more is not None:
        return _read(vcpu, *call.more(args, b"", bits))
    return _read(vcpu, args[call.at], call.answer)

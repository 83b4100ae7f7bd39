"""A scripted guest whose hypercalls go through the tracer."""

from __future__ import annotations

from pyxen.api import TraceRecord
from pyxen.hypervisor.trace.decode import decode
from pyxen.hypervisor.trace.observed import Observed
from pyxen.hypervisor.trace.ring import Ring
from tests.unit.hypervisor.hypercalls.scripted import ScriptedGuest


class TracedGuest(ScriptedGuest):
    def __init__(self, vcpus: int = 2, bits: int = 64) -> None:
        super().__init__(vcpus, bits)
        self.ring = Ring()
        self.observed = Observed(self.domain, self.ring)
        self.reader = self.ring.reader()
        self.domain.evtchn.observer = self.observed.event

    def call(self, number: int, *args: int, vcpu: int = 0) -> int:
        registers = (*args, *[0xDEAD] * (6 - len(args)))
        return self.observed.hypercall(vcpu, number, registers, self.bits)

    def records(self) -> list[TraceRecord]:
        """What has been noted since the last time."""
        found = []
        while (record := self.reader.next()) is not None:
            found.append(decode(record, self.reader.origin_ns))
        return found

    def last(self) -> TraceRecord:
        return [each for each in self.records() if each.kind == "hypercall"][-1]

"""What of a suspended domain's state is not memory, and a stream's beginning and end."""

from __future__ import annotations

from collections.abc import Sequence

from pyxen.abi import hvm
from pyxen.hypervisor.domain import Domain
from pyxen.hypervisor.memory import PAGE_SHIFT, Region
from pyxen.hypervisor.state.sections import CPU, FRAMES, HEAD, XEN, Writer
from pyxen.hypervisor.state.words import Cpu, Frames, Head, Xen, pack

GUESTS_OWN = hvm.GUEST_MAY_SET - {hvm.PARAM_CALLBACK_IRQ, hvm.PARAM_STORE_EVTCHN, hvm.PARAM_CONSOLE_EVTCHN}
"""Parameters that a restored guest finds as it left them. How it is called back it says anew, and ports are new."""


def describe(domain: Domain, system_time: int, tsc_khz: int) -> Xen:
    """Xen's side of a domain that stands still."""
    return Xen(
        system_time=system_time,
        tsc_khz=tsc_khz,
        params={number: domain.params[number] for number in sorted(GUESTS_OWN)},
        initialised=[vcpu.initialised for vcpu in domain.vcpus],
        runstate_update_flag=domain.runstate_update_flag,
        absent=domain.reservation.holes(),
        maximum=domain.reservation.maximum,
        ports=domain.evtchn.end,
    )


def head(writer: Writer, vcpus: int, regions: Sequence[Region], tsc_khz: int) -> None:
    """What comes first; ``regions`` are what a domain has from its start. Raises OSError and Conflict, as do all."""
    rows = [(region.start, region.end - region.start) for region in regions]
    writer.section(HEAD, pack(Head(vcpus=vcpus, regions=rows, tsc_khz=tsc_khz)))


def frames(writer: Writer, added: Sequence[Region]) -> None:
    """Which pages there are outside of those regions: before what is in them."""
    writer.section(FRAMES, pack(Frames(gfns=[region.start >> PAGE_SHIFT for region in added])))


def end(writer: Writer, xen: Xen, cpus: Sequence[Cpu]) -> None:
    """What comes last."""
    writer.section(XEN, pack(xen))
    for cpu in cpus:
        writer.section(CPU, pack(cpu))
    writer.done()

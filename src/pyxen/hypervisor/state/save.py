"""Writing a suspended domain's state."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pyxen.abi import hvm
from pyxen.hypervisor.domain import Domain
from pyxen.hypervisor.memory import PAGE_SHIFT, Region
from pyxen.hypervisor.state import ram
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
    )


def write(fd: int, boot_regions: Sequence[Region], frames: Iterable[Region], xen: Xen, cpus: Sequence[Cpu]) -> int:
    """Write it all; how many bytes. ``frames`` are pages outside of what the domain had at its start.

    May run in a thread of its own. Raises OSError.
    """
    writer = Writer(fd)
    frames = list(frames)
    regions = [(region.start, region.end - region.start) for region in boot_regions]
    writer.section(HEAD, pack(Head(vcpus=len(cpus), regions=regions)))
    writer.section(FRAMES, pack(Frames(gfns=[region.start >> PAGE_SHIFT for region in frames])))
    for region in (*boot_regions, *frames):
        ram.write(writer, region.start, region.data)
    writer.section(XEN, pack(xen))
    for cpu in cpus:
        writer.section(CPU, pack(cpu))
    writer.done()
    return writer.written

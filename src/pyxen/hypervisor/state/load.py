"""Reading a state into a domain that has been made for it and has not run: all of it, or (by its exception) nothing."""

from __future__ import annotations

from collections.abc import Callable

from pyxen.errors import InvalidRequest
from pyxen.hypervisor.domain import Domain
from pyxen.hypervisor.memory import BadAddress
from pyxen.hypervisor.state import ram
from pyxen.hypervisor.state.save import GUESTS_OWN
from pyxen.hypervisor.state.sections import CPU, DONE, FRAMES, HEAD, PAGES, XEN, Reader, damaged
from pyxen.hypervisor.state.words import Cpu, Frames, Head, Xen, unpack


def read(fd: int, domain: Domain, check_tsc: Callable[[int], None]) -> tuple[Xen, list[Cpu]]:
    """Read from ``fd``; memory goes to where it belongs. Raises InvalidRequest: then the domain must not run.

    What it gives is for ``apply`` and for the machine. ``check_tsc`` is given the counters' frequency before anything
    else is read: it raises where they can't go on.
    """
    try:
        return _read(Reader(fd), domain, check_tsc)
    except OSError as error:
        raise InvalidRequest(f"the state can't be read: {error.strerror}") from error


def _read(reader: Reader, domain: Domain, check_tsc: Callable[[int], None]) -> tuple[Xen, list[Cpu]]:
    if reader.section() != HEAD:
        raise damaged("it has no head")
    head = unpack(reader.contents(), Head)
    _check(head, domain)
    if head.tsc_khz:
        check_tsc(head.tsc_khz)
    xen: Xen | None = None
    cpus: dict[int, Cpu] = {}
    while (kind := reader.section()) != DONE:
        if kind == PAGES:
            ram.read(reader, domain.memory)
        elif kind == FRAMES:
            _make_frames(unpack(reader.contents(), Frames), domain.machine.map_frame)
        elif kind == XEN:
            xen = unpack(reader.contents(), Xen)
        elif kind == CPU:
            cpu = unpack(reader.contents(), Cpu)
            cpus[cpu.index] = cpu
        else:
            raise damaged(f"a section of the unknown kind {kind!r}")
    if xen is None or sorted(cpus) != list(range(len(domain.vcpus))) or len(xen.initialised) != len(cpus):
        raise damaged("it does not describe the whole domain")
    return xen, [cpus[index] for index in range(len(cpus))]


def apply(xen: Xen, domain: Domain) -> None:
    """Give Xen's side what it had. Raises InvalidRequest."""
    if not domain.reservation.set_holes(xen.absent) or not 0 <= xen.maximum <= domain.reservation.size:
        raise damaged("its balloon is not this domain's")
    domain.reservation.maximum = xen.maximum
    domain.evtchn.leave_out(xen.ports)
    domain.runstate_update_flag = xen.runstate_update_flag
    for vcpu, initialised in zip(domain.vcpus, xen.initialised, strict=True):
        vcpu.initialised = initialised
    for number, value in xen.params.items():
        if number in GUESTS_OWN:
            domain.params[number] = value


def _check(head: Head, domain: Domain) -> None:
    if head.vcpus != len(domain.vcpus):
        raise InvalidRequest(
            f"the state is that of a guest with {head.vcpus} VCPUs, the domain has {len(domain.vcpus)}"
        )
    if sorted(head.regions) != sorted((region.start, region.end - region.start) for region in domain.memory.regions):
        sizes = sum(size for _, size in head.regions), sum(r.end - r.start for r in domain.memory.regions)
        raise InvalidRequest(
            "the state is that of a guest with {} KiB of memory, the domain has {}".format(*(n >> 10 for n in sizes))
        )


def _make_frames(frames: Frames, make: Callable[[int], None]) -> None:
    try:
        for gfn in frames.gfns:
            make(gfn)
    except BadAddress:
        raise damaged("a page where none can be") from None

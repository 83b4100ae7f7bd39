"""MEMORY_OP: ballooning, the memory map, and where shared_info and the grant table are to be seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pyxen.abi import memory as abi
from pyxen.abi.errno import E2BIG, EFAULT, EINVAL, ENOBUFS, ENOSYS, EOPNOTSUPP, EPERM, ESRCH, XenError
from pyxen.hypervisor.hypercalls import guest
from pyxen.hypervisor.memory import BadAddress

if TYPE_CHECKING:
    from pyxen.hypervisor.domain import Domain
    from pyxen.hypervisor.vcpu import Vcpu

MAX_PAGES = 4096
"""Pages that one call deals with; a short count is legal, and guests go on from there."""
MAX_BATCH = 512
"""Frames placed by one call, each of which moves a page; a batch can't be answered in part. Guests send far fewer."""
MAX_ORDER = 9
"""Pages of one extent, as a power of two: 2 MiB, what a domain without privileges may ask for."""


def _require_self(domain: Domain, domid: int) -> None:
    if not domain.is_self(domid):
        raise XenError(EPERM if domid == 0 else ESRCH)


# Reservation


def _gfn_list(vcpu: Vcpu, address: int, index: int, bits: int) -> int:
    width = bits // 8
    return int.from_bytes(guest.read(vcpu, address + index * width, width), "little")


def _decrease(domain: Domain, gfn: int) -> bool:
    if not domain.reservation.remove(gfn):
        return False
    domain.machine.release(gfn)
    return True


def _populate(domain: Domain, gfn: int) -> bool:
    # What was released reads as zeros, so a page is ready as soon as it is counted. A page that is there already
    # stays as it is: guests populate after a decrease that may have been cut short.
    return domain.reservation.put_back(gfn) or domain.reservation.is_present(gfn)


def _extents(vcpu: Vcpu, arg: int, start: int, bits: int, each: Callable[[Domain, int], bool]) -> int:
    """Apply ``each`` to every page of every extent; how many extents were done."""
    op = guest.get(vcpu, abi.RESERVATION_ARG, arg, bits)
    domain = vcpu.domain
    _require_self(domain, op.domid)
    if start > op.nr_extents or op.extent_order > MAX_ORDER:
        return start
    end = min(op.nr_extents, start + (MAX_PAGES >> op.extent_order))
    pages = 1 << op.extent_order
    domain.reservation.changed()
    for index in range(start, end):
        try:
            gfn = _gfn_list(vcpu, op.extent_start, index, bits)
        except BadAddress:
            return index if index > start else -EFAULT
        if gfn % pages or not all(each(domain, gfn + page) for page in range(pages)):
            return index
    return end


def _decrease_reservation(vcpu: Vcpu, arg: int, start: int, bits: int) -> int:
    return _extents(vcpu, arg, start, bits, _decrease)


def _populate_physmap(vcpu: Vcpu, arg: int, start: int, bits: int) -> int:
    return _extents(vcpu, arg, start, bits, _populate)


def _increase_reservation(vcpu: Vcpu, arg: int, start: int, bits: int) -> int:
    """Frames that are nowhere in the guest's map are of no use to it: none is given."""
    _require_self(vcpu.domain, guest.get(vcpu, abi.RESERVATION_ARG, arg, bits).domid)
    return start


def _domain_argument(vcpu: Vcpu, arg: int, bits: int) -> Domain:
    _require_self(vcpu.domain, guest.get(vcpu, abi.DOMAIN_ID_ARG, arg, bits).domid)
    return vcpu.domain


def _current_reservation(vcpu: Vcpu, arg: int, start: int, bits: int) -> int:
    return _domain_argument(vcpu, arg, bits).reservation.current


def _maximum_reservation(vcpu: Vcpu, arg: int, start: int, bits: int) -> int:
    return _domain_argument(vcpu, arg, bits).reservation.maximum


def _maximum_gpfn(vcpu: Vcpu, arg: int, start: int, bits: int) -> int:
    return _domain_argument(vcpu, arg, bits).reservation.last_gfn


def _maximum_ram_page(vcpu: Vcpu, arg: int, start: int, bits: int) -> int:
    return vcpu.domain.reservation.last_gfn


def _memory_map(vcpu: Vcpu, arg: int, start: int, bits: int) -> int:
    op = guest.get(vcpu, abi.MEMORY_MAP_ARG, arg, bits)
    entries = vcpu.domain.memory_map
    if op.nr_entries < len(entries) and op.buffer:
        return -ENOBUFS
    data = b"".join(
        address.to_bytes(8, "little") + size.to_bytes(8, "little") + kind.to_bytes(4, "little")
        for address, size, kind in entries
    )
    if op.buffer:
        guest.write(vcpu, op.buffer, data)
    guest.put(vcpu, abi.MEMORY_MAP_ARG, arg, bits, "nr_entries", len(entries))
    return 0


# The physical map


def _place(domain: Domain, space: int, idx: int, gfn: int, bits: int) -> None:
    """Show one of Xen's pages at ``gfn``. Raises XenError."""
    if space == abi.SPACE_SHARED_INFO:
        if idx != 0:
            raise XenError(EINVAL)
        _make_frame(domain, gfn)
        domain.place_shared_info(gfn, bits)
    elif space == abi.SPACE_GRANT_TABLE:
        frame = domain.grants.frame(idx & ~abi.GRANT_STATUS_FRAME, status=bool(idx & abi.GRANT_STATUS_FRAME))
        _make_frame(domain, gfn)
        if frame.gfn != gfn:
            frame.place(domain.page(gfn), gfn)
    elif space in (abi.SPACE_GMFN, abi.SPACE_GMFN_RANGE):
        raise XenError(EOPNOTSUPP, "a page of RAM stays at its frame number")
    else:
        raise XenError(ENOSYS)


def _make_frame(domain: Domain, gfn: int) -> None:
    """Have a page at ``gfn`` that belongs to nothing else of Xen's."""
    if domain.shared_info.gfn == gfn or any(frame.gfn == gfn for frame in domain.grants.all_frames()):
        # Putting one of our pages over another: its present place is a page of the guest's again.
        _take_away(domain, gfn)
    try:
        domain.machine.map_frame(gfn)
    except BadAddress:
        raise XenError(EINVAL) from None
    # The page of RAM that was there is gone.
    domain.reservation.remove(gfn)


def _take_away(domain: Domain, gfn: int) -> bool:
    """Stop showing one of Xen's pages at ``gfn``; False if none is there. Its contents go on elsewhere."""
    if domain.shared_info.gfn == gfn:
        domain.hide_shared_info()
        return True
    for frame in domain.grants.all_frames():
        if frame.gfn == gfn:
            frame.hide()
            return True
    return False


def _add_to_physmap(vcpu: Vcpu, arg: int, start: int, bits: int) -> int:
    op = guest.get(vcpu, abi.ADD_TO_PHYSMAP_ARG, arg, bits)
    _require_self(vcpu.domain, op.domid)
    _place(vcpu.domain, op.space, op.idx, op.gpfn, bits)
    return 0


def _add_to_physmap_batch(vcpu: Vcpu, arg: int, start: int, bits: int) -> int:
    op = guest.get(vcpu, abi.ADD_TO_PHYSMAP_BATCH_ARG, arg, bits)
    _require_self(vcpu.domain, op.domid)
    if op.space == abi.SPACE_GMFN_FOREIGN:
        raise XenError(EPERM, "no other domain's memory is here")
    if op.size > MAX_BATCH:
        return -E2BIG
    for index in range(start, op.size):
        idx, gfn = _gfn_list(vcpu, op.idxs, index, bits), _gfn_list(vcpu, op.gpfns, index, bits)
        error = 0
        try:
            _place(vcpu.domain, op.space, idx, gfn, bits)
        except XenError as refusal:
            error = -refusal.errno
        guest.write(vcpu, op.errs + 4 * index, error.to_bytes(4, "little", signed=True))
    return 0


def _remove_from_physmap(vcpu: Vcpu, arg: int, start: int, bits: int) -> int:
    op = guest.get(vcpu, abi.REMOVE_FROM_PHYSMAP_ARG, arg, bits)
    _require_self(vcpu.domain, op.domid)
    if _take_away(vcpu.domain, op.gpfn) or _decrease(vcpu.domain, op.gpfn):
        return 0
    return -EINVAL


_OPS: dict[int, Callable[[Vcpu, int, int, int], int]] = {
    abi.INCREASE_RESERVATION: _increase_reservation,
    abi.DECREASE_RESERVATION: _decrease_reservation,
    abi.POPULATE_PHYSMAP: _populate_physmap,
    abi.MAXIMUM_RAM_PAGE: _maximum_ram_page,
    abi.CURRENT_RESERVATION: _current_reservation,
    abi.MAXIMUM_RESERVATION: _maximum_reservation,
    abi.MAXIMUM_GPFN: _maximum_gpfn,
    abi.MEMORY_MAP: _memory_map,
    abi.ADD_TO_PHYSMAP: _add_to_physmap,
    abi.ADD_TO_PHYSMAP_BATCH: _add_to_physmap_batch,
    abi.REMOVE_FROM_PHYSMAP: _remove_from_physmap,
}
_REFUSED = {
    abi.GET_VNUMAINFO: EOPNOTSUPP,
    abi.MACHINE_MEMORY_MAP: EPERM,
    abi.SET_MEMORY_MAP: EPERM,
    abi.SET_POD_TARGET: EPERM,
    abi.GET_POD_TARGET: EPERM,
    abi.CLAIM_PAGES: EPERM,
    abi.ACQUIRE_RESOURCE: EPERM,
}
"""The tool stack's, and those of machines with NUMA; all others are -ENOSYS, as for HVM domains in Xen."""


def handle(vcpu: Vcpu, args: tuple[int, ...], bits: int) -> int:
    """(op and first extent, pointer)."""
    cmd = args[0] & 0xFFFFFFFF
    operation = _OPS.get(cmd & abi.CMD_MASK)
    if operation is None:
        return -_REFUSED.get(cmd & abi.CMD_MASK, ENOSYS)
    return operation(vcpu, args[1], cmd >> abi.START_EXTENT_SHIFT, bits)

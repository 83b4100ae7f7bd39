"""GRANT_TABLE_OP: the guest sets up its table. It has nobody's pages to map but its own, which it need not."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from pyxen.abi import grant_table as abi
from pyxen.abi.errno import E2BIG, EINVAL, ENOSYS, EOPNOTSUPP, ESRCH, XenError
from pyxen.abi.layout import Layout
from pyxen.abi.shared_info import PAGE_SIZE
from pyxen.hypervisor.grants import window
from pyxen.hypervisor.hypercalls import guest
from pyxen.hypervisor.memory import BadAddress

if TYPE_CHECKING:
    from pyxen.hypervisor.vcpu import Vcpu

MAX_COUNT = 4096
"""Operations in one call. Guests send batches of up to a few hundred."""
_NO_FRAME = (1 << 64) - 1


def _foreign(vcpu: Vcpu, domid: int) -> int:
    """0 for the guest itself, else what to answer about Domain-0 or a domain that isn't there."""
    if vcpu.domain.is_self(domid):
        return abi.OKAY
    return abi.PERMISSION_DENIED if domid == 0 else abi.BAD_DOMAIN


def _map(vcpu: Vcpu, address: int, bits: int) -> int:
    op = guest.get(vcpu, abi.MAP_GRANT_REF_ARG, address, bits)
    status = _foreign(vcpu, op.dom)
    # Domain-0 grants the guest nothing; and a second place for a page of its own is beyond this map.
    answer = {abi.OKAY: abi.GENERAL_ERROR, abi.PERMISSION_DENIED: abi.BAD_GNTREF}.get(status, status)
    guest.put(vcpu, abi.MAP_GRANT_REF_ARG, address, bits, "status", answer)
    return 0


def _unmap(vcpu: Vcpu, address: int, bits: int) -> int:
    guest.get(vcpu, abi.UNMAP_GRANT_REF_ARG, address, bits)
    guest.put(vcpu, abi.UNMAP_GRANT_REF_ARG, address, bits, "status", abi.BAD_HANDLE)
    return 0


def _copy(vcpu: Vcpu, address: int, bits: int) -> int:
    op = guest.get(vcpu, abi.COPY_ARG, address, bits)
    try:
        status = _copy_one(vcpu, op)
    except abi.GrantError as error:
        status = error.status
    except BadAddress:
        status = abi.BAD_PAGE
    guest.put(vcpu, abi.COPY_ARG, address, bits, "status", status)
    return 0


def _copy_one(vcpu: Vcpu, op: abi.CopyOp) -> int:
    for domid in (op.source_domid, op.dest_domid):
        status = _foreign(vcpu, domid)
        if status != abi.OKAY:
            return status
    if op.source_offset + op.length > PAGE_SIZE or op.dest_offset + op.length > PAGE_SIZE:
        return abi.BAD_COPY_ARG
    with ExitStack() as stack:
        views = []
        for reference, offset, by_ref, write in (
            (op.source, op.source_offset, op.flags & abi.COPY_SOURCE_GREF, False),
            (op.dest, op.dest_offset, op.flags & abi.COPY_DEST_GREF, True),
        ):
            if by_ref:
                ref = reference & 0xFFFFFFFF
                use = vcpu.domain.grants.use(ref, write=write, user=vcpu.domain.domid)
                views.append(window(ref, stack.enter_context(use), offset, op.length))
            else:
                place = vcpu.domain.memory.view if write else vcpu.domain.memory.look
                views.append(place(reference * PAGE_SIZE + offset, op.length))
        views[1][:] = bytes(views[0])
    return abi.OKAY


def _swap(vcpu: Vcpu, address: int, bits: int) -> int:
    op = guest.get(vcpu, abi.SWAP_GRANT_REF_ARG, address, bits)
    status = vcpu.domain.grants.swap(op.ref_a, op.ref_b)
    guest.put(vcpu, abi.SWAP_GRANT_REF_ARG, address, bits, "status", status)
    return 0


def _setup_table(vcpu: Vcpu, arg: int, bits: int) -> int:
    op = guest.get(vcpu, abi.SETUP_TABLE_ARG, arg, bits)
    status = _foreign(vcpu, op.dom)
    grants = vcpu.domain.grants
    if status == abi.OKAY and op.nr_frames > grants.max_frames:
        status = abi.GENERAL_ERROR
    if status == abi.OKAY:
        grants.grow(op.nr_frames)
        frames = [frame.gfn for frame in grants.frames[: op.nr_frames]]
        status = _frame_list(vcpu, op.frame_list, frames, bits // 8)
    guest.put(vcpu, abi.SETUP_TABLE_ARG, arg, bits, "status", status)
    return 0


def _frame_list(vcpu: Vcpu, address: int, gfns: list[int | None], width: int) -> int:
    """Tell where frames are, all ones for those that the guest hasn't placed."""
    mask = (1 << width * 8) - 1
    try:
        guest.write(
            vcpu,
            address,
            b"".join(((_NO_FRAME if gfn is None else gfn) & mask).to_bytes(width, "little") for gfn in gfns),
        )
    except BadAddress:
        return abi.BAD_VIRT_ADDR
    return abi.OKAY


def _query_size(vcpu: Vcpu, arg: int, bits: int) -> int:
    op = guest.get(vcpu, abi.QUERY_SIZE_ARG, arg, bits)
    grants = vcpu.domain.grants
    status = _foreign(vcpu, op.dom)
    answer = op._replace(status=status)
    if status == abi.OKAY:
        answer = answer._replace(nr_frames=len(grants.frames), max_nr_frames=grants.max_frames)
    guest.write(vcpu, arg, abi.QUERY_SIZE_ARG.pack(answer, bits))
    return 0


def _set_version(vcpu: Vcpu, arg: int, bits: int) -> int:
    grants = vcpu.domain.grants
    try:
        grants.set_version(guest.get(vcpu, abi.SET_VERSION_ARG, arg, bits).version)
    finally:
        # What is in force is told in any case, as Xen does.
        guest.put(vcpu, abi.SET_VERSION_ARG, arg, bits, "version", grants.version)
    return 0


def _get_status_frames(vcpu: Vcpu, arg: int, bits: int) -> int:
    op = guest.get(vcpu, abi.GET_STATUS_FRAMES_ARG, arg, bits)
    status = _foreign(vcpu, op.dom)
    frames = vcpu.domain.grants.status_frames
    if status == abi.OKAY and op.nr_frames > len(frames):
        status = abi.GENERAL_ERROR
    if status == abi.OKAY:
        status = _frame_list(vcpu, op.frame_list, [frame.gfn for frame in frames[: op.nr_frames]], 8)
    guest.put(vcpu, abi.GET_STATUS_FRAMES_ARG, arg, bits, "status", status)
    return 0


def _get_version(vcpu: Vcpu, arg: int, bits: int) -> int:
    op = guest.get(vcpu, abi.GET_VERSION_ARG, arg, bits)
    if _foreign(vcpu, op.dom) != abi.OKAY:
        raise XenError(ESRCH)
    guest.put(vcpu, abi.GET_VERSION_ARG, arg, bits, "version", vcpu.domain.grants.version)
    return 0


_SINGLE: dict[int, Callable[[Vcpu, int, int], int]] = {
    abi.SETUP_TABLE: _setup_table,
    abi.QUERY_SIZE: _query_size,
    abi.SET_VERSION: _set_version,
    abi.GET_STATUS_FRAMES: _get_status_frames,
    abi.GET_VERSION: _get_version,
}
_EACH: dict[int, tuple[Callable[[Vcpu, int, int], int], Layout[Any]]] = {
    abi.MAP_GRANT_REF: (_map, abi.MAP_GRANT_REF_ARG),
    abi.UNMAP_GRANT_REF: (_unmap, abi.UNMAP_GRANT_REF_ARG),
    abi.UNMAP_AND_REPLACE: (_unmap, abi.UNMAP_GRANT_REF_ARG),
    abi.COPY: (_copy, abi.COPY_ARG),
    abi.SWAP_GRANT_REF: (_swap, abi.SWAP_GRANT_REF_ARG),
}
_UNSUPPORTED = frozenset({abi.DUMP_TABLE, abi.TRANSFER, abi.CACHE_FLUSH})


def handle(vcpu: Vcpu, args: tuple[int, ...], bits: int) -> int:
    """(op, pointer to an array of structures, count)."""
    cmd, count = args[0] & 0xFFFFFFFF, args[2] & 0xFFFFFFFF
    if count >> 31:
        return -EINVAL
    if cmd & ~abi.CMD_MASK and cmd & abi.CMD_MASK != abi.CACHE_FLUSH:
        return -EINVAL
    if cmd in _SINGLE:
        return _SINGLE[cmd](vcpu, args[1], bits) if count == 1 else -EINVAL
    if cmd not in _EACH:
        return -EOPNOTSUPP if cmd & abi.CMD_MASK in _UNSUPPORTED else -ENOSYS
    if count > MAX_COUNT:
        return -E2BIG
    operation, layout = _EACH[cmd]
    for index in range(count):
        operation(vcpu, args[1] + index * layout.size(bits), bits)
    return 0

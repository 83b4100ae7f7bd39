"""The domain's grant table: what it lets back ends, which are Domain-0, do with its pages.

The table is shared with the guest, which may change an entry at any moment: an entry is read once, the in-use bits are
set by a locked compare, and only what was read then counts. Both versions of the entry format are served.
All methods are called with ``domain.lock`` held, but those of a back end (``map``, ``unmap``, ``copy_in``,
``copy_out``), which take it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Final

from pyxen.abi.errno import EBUSY, EINVAL, ERANGE, XenError
from pyxen.abi.grant_table import (
    BAD_COPY_ARG,
    BAD_GNTREF,
    BAD_PAGE,
    EAGAIN,
    GTF_PERMIT_ACCESS,
    GTF_READING,
    GTF_READONLY,
    GTF_SUB_PAGE,
    GTF_TRANSITIVE,
    GTF_TYPE_MASK,
    GTF_WRITING,
    NR_RESERVED,
    PERMISSION_DENIED,
    STATUS_PER_FRAME,
    V1_ENTRY,
    V1_PER_FRAME,
    V2_ENTRY,
    V2_PER_FRAME,
    GrantError,
)
from pyxen.abi.shared_info import PAGE_SIZE
from pyxen.hypervisor.atomic import SharedPage
from pyxen.hypervisor.memory import BadAddress, GuestMemory
from pyxen.hypervisor.shared_info import private_page

BACKEND_DOMID: Final = 0
DEFAULT_MAX_FRAMES: Final = 64
_IN_USE: Final = GTF_READING | GTF_WRITING
_TRIES: Final = 5


class Frame:
    """One frame of the table: a page of ours until the guest places it in its memory."""

    def __init__(self) -> None:
        self.page = private_page()
        self.gfn: int | None = None

    def place(self, page: SharedPage, gfn: int | None) -> None:
        """Move to ``page``, contents included."""
        page.view[:] = self.page.view
        self.page, self.gfn = page, gfn

    def hide(self) -> None:
        """Take the contents out of the guest's memory again."""
        self.place(private_page(), None)


class Active:
    """A granted page in use."""

    __slots__ = ("gfn", "length", "pins", "start", "view", "writable")

    def __init__(self, gfn: int, view: memoryview, start: int, length: int) -> None:
        self.gfn = gfn
        self.view = view
        self.start = start
        self.length = length
        self.pins = 0
        self.writable = False


class GrantTable:
    """The table of one domain. ``pins`` of reserved references don't stop a change of version, as in Xen."""

    def __init__(
        self, memory: GuestMemory, lock: AbstractContextManager[bool], max_frames: int = DEFAULT_MAX_FRAMES
    ) -> None:
        self.memory = memory
        self.lock = lock
        self.max_frames = max_frames
        self.version = 1
        self.frames: list[Frame] = [Frame()]
        self.status_frames: list[Frame] = []
        self.active: dict[int, Active] = {}

    # Shape

    @property
    def entries(self) -> int:
        return len(self.frames) * (V1_PER_FRAME if self.version == 1 else V2_PER_FRAME)

    @property
    def max_status_frames(self) -> int:
        return -(-self.max_frames * V2_PER_FRAME // STATUS_PER_FRAME)

    def grow(self, frames: int) -> None:
        """Have at least ``frames`` frames. Raises XenError(EINVAL) beyond the domain's limit."""
        if frames > self.max_frames:
            raise XenError(EINVAL)
        while len(self.frames) < frames:
            self.frames.append(Frame())
        if self.version == 2:
            while len(self.status_frames) * STATUS_PER_FRAME < self.entries:
                self.status_frames.append(Frame())

    def frame(self, index: int, *, status: bool = False) -> Frame:
        """The frame (of status words) with this index, made if need be. Raises XenError(EINVAL)."""
        if not status:
            self.grow(index + 1)
            return self.frames[index]
        if self.version != 2 or index >= self.max_status_frames:
            raise XenError(EINVAL)
        self.grow(-(-(index * STATUS_PER_FRAME + 1) // V2_PER_FRAME))
        return self.status_frames[index]

    def all_frames(self) -> list[Frame]:
        return [*self.frames, *self.status_frames]

    def set_version(self, version: int) -> None:
        """Change the format; all but the reserved entries are lost. Raises XenError(EBUSY) while one is in use."""
        if version not in (1, 2):
            raise XenError(EINVAL)
        if version == self.version:
            return
        if any(ref >= NR_RESERVED for ref in self.active):
            raise XenError(EBUSY)
        reserved = [self._reserved(ref) for ref in range(NR_RESERVED)]
        for frame in self.all_frames():
            frame.page.view[:] = bytes(PAGE_SIZE)
        self.version = version
        if version == 1:
            self.status_frames = []
        else:
            self.grow(len(self.frames))
        for ref, (flags, domid, gfn) in enumerate(reserved):
            self._write(ref, flags, domid, gfn)

    def _reserved(self, ref: int) -> tuple[int, int, int]:
        """Flags (in-use bits included), domain and frame of a reserved entry; zeros for one that isn't plain."""
        page, offset, flags, domid = self._entry(ref)
        gfn = page.u32[offset // 4 + 1] if self.version == 1 else page.u64[offset // 8 + 1]
        kind = flags & GTF_TYPE_MASK
        if self.version == 2:
            if kind == GTF_TRANSITIVE or (kind == GTF_PERMIT_ACCESS and gfn >> 32):
                raise XenError(ERANGE)
            status, at = self._status(ref)
            flags |= status.u16[at // 2] & _IN_USE
        return (flags & 0xFFFF, domid, gfn) if kind == GTF_PERMIT_ACCESS else (0, 0, 0)

    def _write(self, ref: int, flags: int, domid: int, gfn: int) -> None:
        page, offset, _, _ = self._entry(ref)
        page.u16[offset // 2 + 1] = domid
        if self.version == 1:
            page.u32[offset // 4 + 1] = gfn
            page.u16[offset // 2] = flags
        else:
            page.u64[offset // 8 + 1] = gfn
            page.u16[offset // 2] = flags & ~_IN_USE
            status, at = self._status(ref)
            status.u16[at // 2] = flags & _IN_USE

    def grant(self, ref: int, gfn: int, domid: int = BACKEND_DOMID) -> None:
        """Fill an entry on the guest's behalf: the tool stack does, for the console and xenstore rings."""
        self._write(ref, GTF_PERMIT_ACCESS, domid, gfn)

    def swap(self, ref_a: int, ref_b: int) -> int:
        """Exchange two entries that nobody uses; GNTST_…"""
        if not (0 <= ref_a < self.entries and 0 <= ref_b < self.entries):
            return BAD_GNTREF
        if ref_a in self.active or ref_b in self.active:
            return EAGAIN
        size = V1_ENTRY if self.version == 1 else V2_ENTRY
        page_a, at_a, _, _ = self._entry(ref_a)
        page_b, at_b, _, _ = self._entry(ref_b)
        entry_a, entry_b = bytes(page_a.view[at_a : at_a + size]), bytes(page_b.view[at_b : at_b + size])
        page_a.view[at_a : at_a + size], page_b.view[at_b : at_b + size] = entry_b, entry_a
        return 0

    # Entries

    def _entry(self, ref: int) -> tuple[SharedPage, int, int, int]:
        """The page and offset of an entry, its flags and its domain (both read at once)."""
        if self.version == 1:
            page, offset = self.frames[ref // V1_PER_FRAME].page, ref % V1_PER_FRAME * V1_ENTRY
        else:
            page, offset = self.frames[ref // V2_PER_FRAME].page, ref % V2_PER_FRAME * V2_ENTRY
        header = page.u32[offset // 4]
        return page, offset, header & 0xFFFF, header >> 16

    def _status(self, ref: int) -> tuple[SharedPage, int]:
        return self.status_frames[ref // STATUS_PER_FRAME].page, ref % STATUS_PER_FRAME * 2

    def _check(self, ref: int, flags: int, domid: int, user: int, write: bool) -> None:
        if flags & GTF_TYPE_MASK != GTF_PERMIT_ACCESS or domid != user:
            raise GrantError(ref, BAD_GNTREF, f"not granted to domain {user} (flags {flags:#x}, domain {domid})")
        if write and flags & GTF_READONLY:
            raise GrantError(ref, PERMISSION_DENIED, "granted for reading only")

    def _pin(self, ref: int, user: int, write: bool) -> int:
        """Check an entry and set its in-use bits in one step; its flags."""
        bits = GTF_READING | GTF_WRITING if write else GTF_READING
        for _ in range(_TRIES):
            page, offset, flags, domid = self._entry(ref)
            self._check(ref, flags, domid, user, write)
            if self.version == 1:
                header = flags | domid << 16
                if page.compare_exchange32(offset, header, header | bits) == header:
                    return flags
            else:
                status, at = self._status(ref)
                status.or16(at, bits)
                # The bits must be visible before the entry counts: the guest clears it first and looks then.
                if self._entry(ref)[2:] == (flags, domid):
                    return flags
                if ref not in self.active:
                    status.and16(at, 0xFFFF & ~_IN_USE)
        raise GrantError(ref, BAD_GNTREF, "the guest keeps changing it")

    def _unpin(self, ref: int) -> None:
        if self.version == 1:
            page, offset, _, _ = self._entry(ref)
        else:
            page, offset = self._status(ref)
        page.and16(offset, 0xFFFF & ~_IN_USE)

    def _acquire(self, ref: int, write: bool, user: int = BACKEND_DOMID) -> Active:
        if not 0 <= ref < self.entries:
            raise GrantError(ref, BAD_GNTREF, f"the table has {self.entries} entries")
        flags = self._pin(ref, user, write)
        active = self.active.get(ref)
        if active is None:
            try:
                active = self._look(ref, flags)
            except GrantError:
                self._unpin(ref)
                raise
            self.active[ref] = active
        active.pins += 1
        active.writable |= write
        return active

    def _look(self, ref: int, flags: int) -> Active:
        page, offset, _, _ = self._entry(ref)
        start, length = 0, PAGE_SIZE
        if self.version == 1:
            gfn = page.u32[offset // 4 + 1]
        else:
            gfn = page.u64[offset // 8 + 1]
            if flags & GTF_SUB_PAGE:
                start, length = page.u16[offset // 2 + 2], page.u16[offset // 2 + 3]
        try:
            return Active(gfn, self.memory.view(gfn * PAGE_SIZE, PAGE_SIZE), start, length)
        except BadAddress:
            raise GrantError(ref, BAD_PAGE, f"frame {gfn:#x} is not in the guest's memory") from None

    def _release(self, ref: int) -> None:
        active = self.active.get(ref)
        if active is None:
            raise GrantError(ref, BAD_GNTREF, "not in use")
        if active.writable:
            self.memory.mark(active.gfn * PAGE_SIZE, PAGE_SIZE)
        active.pins -= 1
        if not active.pins:
            del self.active[ref]
            self._unpin(ref)

    def written(self) -> set[int]:
        """The frames that back ends may be writing to now. Those given back they have told of then."""
        return {active.gfn for active in self.active.values() if active.writable}

    # Back ends

    def map(self, ref: int, *, write: bool) -> memoryview:
        """The granted page's 4,096 bytes, in use until ``unmap``. Raises GrantError.

        The view is writable in any case; a back end that asked for reading must not write.
        """
        with self.lock:
            active = self._acquire(ref, write)
            if (active.start, active.length) != (0, PAGE_SIZE):
                self._release(ref)
                raise GrantError(ref, BAD_GNTREF, "only a part of the page is granted, which can't be mapped")
            return active.view

    def unmap(self, ref: int) -> None:
        """End one ``map``; after the last one the guest may take the page back. Raises GrantError if there is none."""
        with self.lock:
            self._release(ref)

    def copy_in(self, ref: int, offset: int, length: int) -> bytes:
        """``length`` bytes from ``offset`` in the granted page on. Raises GrantError."""
        with self.lock, _Use(self, ref, False, BACKEND_DOMID) as active:
            return bytes(window(ref, active, offset, length))

    def copy_out(self, ref: int, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Store ``data`` at ``offset`` in the granted page. Raises GrantError."""
        with self.lock, _Use(self, ref, True, BACKEND_DOMID) as active:
            window(ref, active, offset, len(data))[:] = data

    def use(self, ref: int, *, write: bool, user: int) -> AbstractContextManager[Active]:
        """The granted page while a ``with`` block lasts, for domain ``user`` (the guest itself, in GNTTABOP_copy)."""
        return _Use(self, ref, write, user)


class _Use:
    def __init__(self, table: GrantTable, ref: int, write: bool, user: int) -> None:
        self._table, self._ref, self._write, self._user = table, ref, write, user

    def __enter__(self) -> Active:
        return self._table._acquire(self._ref, self._write, self._user)

    def __exit__(self, *_: object) -> None:
        self._table._release(self._ref)


def window(ref: int, active: Active, offset: int, length: int) -> memoryview:
    """The bytes asked for, if they lie in what was granted. Raises GrantError."""
    if offset < active.start or length < 0 or offset + length > min(active.start + active.length, PAGE_SIZE):
        raise GrantError(ref, BAD_COPY_ARG, f"{length} bytes from {offset} on are not in the granted part")
    return active.view[offset : offset + length]

"""What a guest receives: frames from the link, put into the pages that it has granted for that."""

from __future__ import annotations

from dataclasses import dataclass

from pyxen.abi import netif as abi
from pyxen.abi.io_ring import PAGE_SIZE
from pyxen.abi.netif import ExtraType, GsoType, RxFlag, Status
from pyxen.backend.guest import GrantError, Grants
from pyxen.backend.link import FRAME_MAX, Link, Offload
from pyxen.backend.ring import BackRing

_FRAMES_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Abilities:
    """What the front end can take."""

    scatter: bool
    """Packets of more than one slot."""
    blank: bool
    """Packets whose checksum is not complete."""
    tso4: bool
    tso6: bool


class RxQueue:
    """``serve`` is called by the queue's thread. One frame at most is held, until the guest has room for it."""

    def __init__(self, ring: BackRing, grants: Grants, link: Link, abilities: Abilities) -> None:
        self._ring = ring
        self._grants = grants
        self._link = link
        self._abilities = abilities
        self._buffer = bytearray(FRAME_MAX)
        self._held: tuple[int, Offload] | None = None
        self.more = False
        """The last ``serve`` stopped though there may be more: don't sleep."""
        self.bytes = 0
        self.packets = 0
        self.dropped = 0

    @property
    def holding(self) -> bool:
        """The guest has no room: don't wait for the link."""
        return self._held is not None

    def serve(self) -> bool:
        """Hand over what has come, some frames at most; returns whether to notify the guest. Raises RingError, OSError.

        OSError means that the link is of no further use.
        """
        self.more = False
        try:
            for _ in range(_FRAMES_AT_ONCE):
                if self._held is None:
                    self._held = self._link.receive(self._buffer)
                if self._held is None or not self._hand_over(*self._held):
                    break
                self._held = None
            else:
                self.more = True
        finally:
            notify = self._ring.publish()
        return notify

    def stuck(self) -> bool:
        """Nothing can be handed over before the guest sends an event. Raises RingError."""
        return self._held is not None and not self._ring.ask_for_event(self._slots(*self._held))

    def _slots(self, length: int, offload: Offload) -> int:
        return -(-length // PAGE_SIZE) + (1 if offload.segment else 0)

    def _hand_over(self, length: int, offload: Offload) -> bool:
        """False: there is no room yet."""
        slots = self._slots(length, offload)
        if slots == 0 or slots > self._ring.size or (slots > 1 and not self._abilities.scatter):
            self.dropped += 1
            return True
        if self._ring.waiting() < slots:
            return False
        frame = memoryview(self._buffer)[:length]
        start = 0
        while start < length:
            part = frame[start : start + PAGE_SIZE]
            flags = RxFlag.MORE_DATA if start + len(part) < length else 0
            if start == 0:
                flags |= _first_flags(offload)
            self._fill(part, flags)
            if start == 0 and offload.segment:
                self._gso(offload)
            start += len(part)
        self.packets += 1
        self.bytes += length
        return True

    def _fill(self, part: memoryview, flags: int) -> None:
        identity, gref = abi.RX_REQUEST.unpack(self._ring.take())
        status = len(part)
        try:
            page = self._grants.map(gref, write=True)
            page[: len(part)] = part
            self._grants.unmap(gref)
        except GrantError:
            status = Status.ERROR
        self._ring.respond(abi.RX_RESPONSE.pack(identity, 0, flags, status))

    def _gso(self, offload: Offload) -> None:
        """Extra information takes a slot of its own: that of the next request, whose page stays unused."""
        self._ring.take()
        kind = GsoType.TCPV6 if offload.ipv6 else GsoType.TCPV4
        self._ring.respond(abi.EXTRA_GSO.pack(ExtraType.GSO, 0, offload.segment, kind, 0))


def _first_flags(offload: Offload) -> int:
    flags = RxFlag.EXTRA_INFO if offload.segment else RxFlag(0)
    if offload.blank:
        return flags | RxFlag.CSUM_BLANK | RxFlag.DATA_VALIDATED
    return flags | RxFlag.DATA_VALIDATED if offload.validated else flags

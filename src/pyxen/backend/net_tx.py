"""What a guest sends: packets gathered from their slots, straight out of its memory into the link."""

from __future__ import annotations

from dataclasses import dataclass, field

from pyxen.abi import netif as abi
from pyxen.abi.io_ring import PAGE_SIZE
from pyxen.abi.netif import ExtraType, GsoType, Status, TxFlag
from pyxen.backend.guest import GrantError, Grants
from pyxen.backend.headers import HEADERS_MAX
from pyxen.backend.limit import Credit
from pyxen.backend.link import Link, Offload
from pyxen.backend.ring import BackRing, RingError

_ETHERNET_HEADER = 14


class BadPacket(Exception):
    """A packet that is answered with an error; the ring goes on."""


@dataclass(slots=True)
class Packet:
    """One packet's slots: grant, offset and size of each, and the responses they are owed, in the ring's order."""

    slots: list[tuple[int, int, int]]
    ids: list[int | None]
    """None for a slot of extra information."""
    flags: int
    size: int
    """Of the whole packet, as the first slot says."""
    gso: tuple[int, int] | None = None
    """Segment size and GsoType."""
    extras: list[int] = field(default_factory=list)


class TxQueue:
    """``serve`` is called by the queue's thread."""

    def __init__(self, ring: BackRing, grants: Grants, link: Link, credit: Credit) -> None:
        self._ring = ring
        self._grants = grants
        self._link = link
        self.credit = credit
        self.bytes = 0
        self.packets = 0
        self.errors = 0

    def serve(self) -> bool:
        """Send what waits, as far as the rate allows; returns whether to notify the guest. Raises RingError."""
        budget = self._ring.size
        while budget > 0 and self._ring.waiting() and not self.credit.delay():
            packet = self._next()
            budget -= len(packet.ids)
            try:
                self._send(packet)
            except (BadPacket, GrantError, OSError, ValueError):
                self.errors += 1
                self._answer(packet, Status.ERROR)
            else:
                self.packets += 1
                self.bytes += packet.size
                self._answer(packet, Status.OKAY)
            self.credit.spend(packet.size)
        return self._ring.publish()

    def pause(self) -> float | None:
        """How long to sleep: None until there is an event, 0 not at all. Raises RingError."""
        if self._ring.ask_for_event():
            return self.credit.delay()
        return None

    def _next(self) -> Packet:
        """The slots of the next packet. Raises RingError if the guest has shown only a part of it."""
        gref, offset, flags, identity, size = abi.TX_REQUEST.unpack(self._take())
        packet = Packet([(gref, offset, size)], [identity], flags, size)
        if flags & TxFlag.EXTRA_INFO:
            self._extras(packet)
        rest = size
        while flags & TxFlag.MORE_DATA:
            gref, offset, flags, identity, part = abi.TX_REQUEST.unpack(self._take())
            packet.slots.append((gref, offset, part))
            packet.ids.append(identity)
            rest -= part
        gref, offset, _ = packet.slots[0]
        packet.slots[0] = (gref, offset, rest)
        return packet

    def _extras(self, packet: Packet) -> None:
        more = True
        while more:
            raw = self._take()
            kind, flags = abi.EXTRA.unpack_from(raw)
            packet.ids.append(None)
            packet.extras.append(kind)
            if kind == ExtraType.GSO:
                _, _, size, gso_type, _ = abi.EXTRA_GSO.unpack_from(raw)
                packet.gso = (size, gso_type)
            more = bool(flags & abi.EXTRA_MORE)

    def _take(self) -> bytes:
        if not self._ring.waiting():
            raise RingError("a packet without its end")
        return self._ring.take()

    def _send(self, packet: Packet) -> None:
        if len(packet.slots) > abi.TX_SLOTS_MAX or packet.size < _ETHERNET_HEADER:
            raise BadPacket
        offload = self._offload(packet)
        mapped: list[int] = []
        try:
            views = []
            for gref, offset, size in packet.slots:
                if size < 0 or offset + size > PAGE_SIZE:
                    raise BadPacket
                if size:
                    page = self._grants.map(gref, write=False)
                    mapped.append(gref)
                    views.append(page[offset : offset + size])
            self._link.send(_private_head(views), offload)
        finally:
            for gref in mapped:
                self._grants.unmap(gref)

    def _offload(self, packet: Packet) -> Offload:
        blank = bool(packet.flags & TxFlag.CSUM_BLANK)
        validated = blank or bool(packet.flags & TxFlag.DATA_VALIDATED)
        if packet.gso is None:
            return Offload(blank, validated)
        size, kind = packet.gso
        if not self._link.segments or not size or kind not in (GsoType.TCPV4, GsoType.TCPV6):
            raise BadPacket
        return Offload(True, True, size, kind == GsoType.TCPV6)

    def _answer(self, packet: Packet, status: Status) -> None:
        for identity in packet.ids:
            known = identity is not None
            self._ring.respond(abi.TX_RESPONSE.pack(identity or 0, status if known else Status.NULL))


def _private_head(views: list[memoryview]) -> list[bytes | memoryview]:
    """The packet with its headers copied: what is decided by them must not change afterwards."""
    head = bytearray()
    rest: list[bytes | memoryview] = []
    for view in views:
        fits = HEADERS_MAX - len(head)
        head += view[:fits]
        if len(view) > fits:
            rest.append(view[fits:])
    return [bytes(head), *rest]

"""A vif against a scripted netfront: on a link that remembers, on a stream socket, and on a real tap device."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import socket
import struct
import threading
from collections import deque
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyxen.abi import netif as abi
from pyxen.abi.netif import ExtraType, RxFlag, Status, TxFlag
from pyxen.abi.xenbus import XenbusState
from pyxen.backend import headers
from pyxen.backend.limit import Credit
from pyxen.backend.link import FRAME_MAX, PLAIN, Link, Offload, StreamLink, TapLink, vnet_header
from pyxen.backend.net import attach, describe
from pyxen.backend.net_rx import Abilities, RxQueue
from pyxen.backend.net_tx import TxQueue
from pyxen.backend.ring import BackRing, RingError
from pyxen.backend.xenbus import Address, introduce
from tests.unit.backend.guest import PAGE, FrontRing, ScriptedGuest

MAC = "00:16:3e:00:00:01"


class MemoryLink:
    """Remembers what is sent; hands out what is put into ``incoming``, and is readable while there is something."""

    def __init__(self, *, segments: bool = True) -> None:
        self.segments = segments
        self.unsent = False
        self.sent: list[tuple[bytes, Offload]] = []
        self.incoming: deque[tuple[bytes, Offload]] = deque()
        self.accepted: tuple[bool, bool, bool] | None = None
        self._event = os.eventfd(0, os.EFD_NONBLOCK)

    def fileno(self) -> int:
        return self._event

    def arrive(self, frame: bytes, offload: Offload = PLAIN) -> None:
        self.incoming.append((frame, offload))
        os.eventfd_write(self._event, 1)

    def accept(self, *, blank: bool, tso4: bool, tso6: bool) -> None:
        self.accepted = (blank, tso4, tso6)

    def use(self, active: bool) -> None: ...

    def send(self, pieces: Sequence[bytes | memoryview], offload: Offload) -> None:
        self.sent.append((b"".join(pieces), offload))

    def receive(self, buffer: bytearray) -> tuple[int, Offload] | None:
        if not self.incoming:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._event)
            return None
        frame, offload = self.incoming.popleft()
        buffer[: len(frame)] = frame
        return len(frame), offload

    def close(self) -> None:
        os.close(self._event)


class Netfront:
    """A front end with one pair of rings and 32 pages to receive into."""

    def __init__(self, link: Link, *, rate: int | None = None, split: bool = False, **features: int) -> None:
        self.guest = ScriptedGuest()
        front, back = describe(0, MAC, bridge="xenbr0")
        introduce(self.guest.local, Address(1, "vif", 0), frontend=front, backend=back)
        self.device = attach(self.guest.local, self.guest, 0, [link], self.guest.call_soon, rate=rate)
        tx_ref, tx_page = self.guest.page()
        rx_ref, rx_page = self.guest.page()
        self.tx = FrontRing([tx_page], 12, 4, 256)
        self.rx = FrontRing([rx_page], 8, 8, 256)
        self.tx_port = self.guest.port()
        self.rx_port = self.guest.port() if split else self.tx_port
        ports = {"event-channel": self.tx_port}
        if split:
            ports = {"event-channel-tx": self.tx_port, "event-channel-rx": self.rx_port}
        offered = {"tx-ring-ref": tx_ref, "rx-ring-ref": rx_ref, "request-rx-copy": 1, **ports}
        on = {"feature-sg": 1, "feature-gso-tcpv4": 1, "feature-gso-tcpv6": 1, "feature-ipv6-csum-offload": 1}
        on |= {key.replace("_", "-"): value for key, value in features.items()}
        for key, value in (offered | on | {"state": 4}).items():
            self.guest.write(f"device/vif/0/{key}", value)
        self.pages = [self.guest.page() for _ in range(32)]

    def post(self, count: int) -> None:
        for _ in range(count):
            self.rx.put(abi.RX_REQUEST.pack(self.rx.prod % 256, self.pages[self.rx.prod % 32][0]))
        self.rx.push()
        self.guest.evtchn.bound[self.rx_port].callback()

    def send(self, *requests: bytes) -> list[tuple[int, int]]:
        for request in requests:
            self.tx.put(request)
        self.tx.push()
        self.guest.evtchn.bound[self.tx_port].callback()
        self.guest.wait(lambda: self.tx.waiting() >= len(requests))
        return [abi.TX_RESPONSE.unpack(self.tx.fetch()) for _ in range(len(requests))]

    def received(self) -> tuple[int, int, bytes]:
        """Identity, flags and contents of the next slot."""
        index = self.rx.cons
        identity, offset, flags, status = abi.RX_RESPONSE.unpack(self.rx.fetch())
        return identity, flags, bytes(self.pages[index % 32][1][offset : offset + max(0, status)])

    def close(self) -> None:
        self.device.destroy()
        assert self.guest.grants.mapped == {}


@pytest.fixture
def link() -> MemoryLink:
    return MemoryLink()


@pytest.fixture
def netfront(link: MemoryLink) -> Iterator[Netfront]:
    front = Netfront(link)
    yield front
    front.close()


def udp4(payload: bytes, *, blank: bool) -> bytes:
    """A frame; with ``blank``, only the pseudo-header is in its checksum."""
    length = 8 + len(payload)
    ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + length, 1, 0, 64, 17, 0, b"\x0a\0\0\x01", b"\x0a\0\0\x02")
    pseudo = ip[12:20] + struct.pack(">BBH", 0, 17, length)
    udp = struct.pack(">HHHH", 1000, 2000, length, 0)
    value = slow_sum(pseudo) if blank else slow_sum(pseudo + udp + payload) ^ 0xFFFF
    return b"\xff" * 12 + b"\x08\x00" + ip + udp[:6] + value.to_bytes(2, "big") + payload


def tcp6(payload: bytes, *, blank: bool) -> bytes:
    length = 20 + len(payload)
    extension = bytes((6, 0, 1, 4, 0, 0, 0, 0))
    ip = struct.pack(">IHBB16s16s", 6 << 28, length + 8, 60, 64, b"\xfe" * 16, b"\xfd" * 16)
    pseudo = ip[8:40] + struct.pack(">IBBBB", length, 0, 0, 0, 6)
    tcp = struct.pack(">HHIIBBHHH", 1, 2, 3, 4, 5 << 4, 16, 5, 0, 0)
    value = slow_sum(pseudo) if blank else slow_sum(pseudo + tcp + payload) ^ 0xFFFF
    tag = b"\x81\x00\x00\x05"
    return b"\xff" * 12 + tag + b"\x86\xdd" + ip + extension + tcp[:16] + value.to_bytes(2, "big") + tcp[18:] + payload


def slow_sum(data: bytes) -> int:
    total = 0
    for index in range(0, len(data), 2):
        total += int.from_bytes(data[index : index + 2].ljust(2, b"\0"), "big")
        total = (total & 0xFFFF) + (total >> 16)
    return total


def test_structures_have_xens_sizes() -> None:
    sizes = [each.size for each in (abi.TX_REQUEST, abi.TX_RESPONSE, abi.RX_REQUEST, abi.RX_RESPONSE, abi.EXTRA_GSO)]
    assert sizes == [12, 4, 8, 8, 8]


@given(payload=st.binary(max_size=1500))
def test_checksums_are_completed(payload: bytes) -> None:
    for make in (udp4, tcp6):
        frame = bytearray(make(payload, blank=True))
        place = headers.find(frame)
        assert place is not None
        assert headers.find(frame[: place.headers]) == place
        padded = frame + b"pad"
        headers.complete(frame, place)
        headers.complete(padded, place)
        wanted = make(payload, blank=False)
        if make is udp4 and wanted[40:42] == b"\0\0":
            wanted = wanted[:40] + b"\xff\xff" + wanted[42:]
        assert frame == wanted
        assert padded == wanted + b"pad"


@given(data=st.binary(max_size=120))
def test_no_frame_breaks_the_parser(data: bytes) -> None:
    for frame in (data, udp4(b"", blank=True)[:23] + data, tcp6(b"", blank=True)[:24] + data):
        place = headers.find(frame)
        if place is not None:
            assert place.start + place.checksum + 2 <= len(frame)
            headers.complete(bytearray(frame), place)


def test_a_vif_connects_and_tells_the_link_what_the_guest_can(link: MemoryLink, netfront: Netfront) -> None:
    assert netfront.guest.local.read("/local/domain/0/backend/vif/1/0/state") == "4"
    assert netfront.guest.local.read("/local/domain/0/backend/vif/1/0/feature-rx-copy") == "1"
    assert link.accepted == (True, True, True)


def test_a_guest_that_needs_checksums_gets_them() -> None:
    link = MemoryLink()
    front = Netfront(link, feature_no_csum_offload=1)
    assert link.accepted == (False, False, False)
    front.close()


def test_a_packet_is_sent_from_its_slots(link: MemoryLink, netfront: Netfront) -> None:
    first, page = netfront.guest.page()
    second, other = netfront.guest.page(readonly=True)
    page[100:1100] = b"a" * 1000
    other[:4096] = b"b" * 4096
    responses = netfront.send(
        abi.TX_REQUEST.pack(first, 100, TxFlag.MORE_DATA, 7, 1000 + 4096),
        abi.TX_REQUEST.pack(second, 0, 0, 8, 4096),
        abi.TX_REQUEST.pack(first, 100, TxFlag.DATA_VALIDATED, 9, 60),
    )
    assert responses == [(7, 0), (8, 0), (9, 0)]
    assert link.sent == [(b"a" * 1000 + b"b" * 4096, Offload()), (b"a" * 60, Offload(validated=True))]


def test_segments_to_be_cut_come_with_extra_information(link: MemoryLink, netfront: Netfront) -> None:
    ref, page = netfront.guest.page()
    page[:100] = bytes(100)
    responses = netfront.send(
        abi.TX_REQUEST.pack(ref, 0, TxFlag.EXTRA_INFO | TxFlag.CSUM_BLANK | TxFlag.MORE_DATA, 1, 8192),
        abi.EXTRA_GSO.pack(ExtraType.GSO, 0, 1448, 1, 0),
        abi.TX_REQUEST.pack(ref, 0, TxFlag.MORE_DATA, 2, 4095),
        abi.TX_REQUEST.pack(ref, 0, 0, 3, 1),
    )
    assert responses == [(1, 0), (0, Status.NULL), (2, 0), (3, 0)]
    assert [(len(frame), offload) for frame, offload in link.sent] == [(8192, Offload(True, True, 1448, False))]


def test_what_cannot_be_is_answered_with_an_error(link: MemoryLink, netfront: Netfront) -> None:
    ref, _ = netfront.guest.page()
    assert netfront.send(abi.TX_REQUEST.pack(ref, 4000, 0, 1, 97)) == [(1, -1)]
    assert netfront.send(abi.TX_REQUEST.pack(9999, 0, 0, 1, 60)) == [(1, -1)]
    assert netfront.send(abi.TX_REQUEST.pack(ref, 0, 0, 1, 13)) == [(1, -1)]
    more = abi.TX_REQUEST.pack(ref, 0, TxFlag.MORE_DATA, 1, 60)
    assert netfront.send(more, abi.TX_REQUEST.pack(ref, 0, 0, 2, 61)) == [(1, -1), (2, -1)]
    slots = [more] * 19 + [abi.TX_REQUEST.pack(ref, 0, 0, 2, 0)]
    assert netfront.send(*slots) == [(1, -1)] * 19 + [(2, -1)]
    extra = abi.TX_REQUEST.pack(ref, 0, TxFlag.EXTRA_INFO, 1, 60)
    assert netfront.send(extra, abi.EXTRA_GSO.pack(ExtraType.GSO, 0, 0, 1, 0)) == [(1, -1), (0, 1)]
    assert link.sent == []
    assert netfront.send(abi.TX_REQUEST.pack(ref, 0, 0, 1, 60)) == [(1, 0)]


def test_half_a_packet_disconnects_the_device(netfront: Netfront) -> None:
    ref, _ = netfront.guest.page()
    netfront.tx.put(abi.TX_REQUEST.pack(ref, 0, TxFlag.MORE_DATA, 1, 60))
    netfront.tx.push()
    netfront.guest.evtchn.bound[netfront.tx_port].callback()
    netfront.guest.wait(lambda: netfront.device.state is XenbusState.CLOSING)


def test_frames_arrive_in_order_and_wait_for_room(link: MemoryLink, netfront: Netfront) -> None:
    frames = [bytes([number]) * (60 + number) for number in range(20)]
    for frame in frames:
        link.arrive(frame)
    netfront.post(5)
    netfront.guest.wait(lambda: netfront.rx.waiting() == 5)
    netfront.post(15)
    netfront.guest.wait(lambda: netfront.rx.waiting() == 20)
    got = [netfront.received() for _ in range(20)]
    assert [contents for _, _, contents in got] == frames
    assert [identity for identity, _, _ in got] == list(range(20))


def test_a_large_frame_takes_several_slots_and_one_for_the_extra(link: MemoryLink, netfront: Netfront) -> None:
    frame = random.Random(1).randbytes(3 * PAGE - 100)
    link.arrive(frame, Offload(True, True, 1448, True))
    netfront.post(3)
    netfront.post(1)
    netfront.guest.wait(lambda: netfront.rx.waiting() == 4)
    _, flags, first = netfront.received()
    assert flags == RxFlag.EXTRA_INFO | RxFlag.MORE_DATA | RxFlag.CSUM_BLANK | RxFlag.DATA_VALIDATED
    assert abi.EXTRA_GSO.unpack(netfront.rx.fetch()) == (ExtraType.GSO, 0, 1448, 2, 0)
    _, middle_flags, middle = netfront.received()
    _, last_flags, last = netfront.received()
    assert (middle_flags, last_flags) == (RxFlag.MORE_DATA, 0)
    assert first + middle + last == frame


def test_a_page_that_is_not_granted_loses_its_slot_only(link: MemoryLink, netfront: Netfront) -> None:
    netfront.rx.put(abi.RX_REQUEST.pack(0, 9999))
    link.arrive(b"x" * 60)
    link.arrive(b"y" * 60)
    netfront.post(1)
    netfront.guest.wait(lambda: netfront.rx.waiting() == 2)
    assert abi.RX_RESPONSE.unpack(netfront.rx.fetch())[3] == Status.ERROR
    assert netfront.received()[2] == b"y" * 60


def test_events_may_have_channels_of_their_own(link: MemoryLink) -> None:
    front = Netfront(link, split=True)
    ref, _ = front.guest.page()
    assert front.send(abi.TX_REQUEST.pack(ref, 0, 0, 1, 60)) == [(1, 0)]
    front.post(1)
    link.arrive(b"x" * 60)
    front.guest.wait(lambda: front.rx.waiting() == 1)
    front.guest.wait(lambda: front.guest.evtchn.bound[front.rx_port].notified == 1)
    assert front.guest.evtchn.bound[front.tx_port].notified == 1
    front.close()


@pytest.mark.parametrize(
    ("key", "value"),
    [("request-rx-copy", 0), ("tx-ring-ref", 9999), ("event-channel", 99), ("multi-queue-num-queues", 2)],
)
def test_a_front_end_that_offers_nonsense_is_refused(link: MemoryLink, key: str, value: int) -> None:
    guest = ScriptedGuest()
    introduce(guest.local, Address(1, "vif", 0))
    device = attach(guest.local, guest, 0, [link], guest.call_soon)
    offered = {"tx-ring-ref": guest.page()[0], "rx-ring-ref": guest.page()[0], "event-channel": guest.port()}
    for name, content in (offered | {"request-rx-copy": 1, key: value, "state": 4}).items():
        guest.write(f"device/vif/0/{name}", content)
    assert device.state is XenbusState.CLOSING
    assert guest.grants.mapped == {}
    device.destroy()


def test_a_front_end_that_says_it_has_one_queue_writes_its_keys_where_they_always_were(link: MemoryLink) -> None:
    """As Linux' netfront does."""
    guest = ScriptedGuest()
    introduce(guest.local, Address(1, "vif", 0))
    device = attach(guest.local, guest, 0, [link], guest.call_soon)
    offered = {"tx-ring-ref": guest.page()[0], "rx-ring-ref": guest.page()[0], "event-channel": guest.port()}
    for name, content in (offered | {"multi-queue-num-queues": 1, "request-rx-copy": 1, "state": 4}).items():
        guest.write(f"device/vif/0/{name}", content)
    assert device.state is XenbusState.CONNECTED
    device.destroy()


def test_the_rate_is_kept() -> None:
    now = [0.0]
    credit = Credit(1_000_000, 65535, clock=lambda: now[0])
    sent = 0
    while now[0] < 10:
        if delay := credit.delay():
            now[0] += delay
        else:
            credit.spend(1500)
            sent += 1500
    assert 10_000_000 <= sent <= 10_000_000 + 100_000 + 3000
    assert Credit(None, 1).delay() == 0


def test_a_limited_guest_is_served_later_not_less(link: MemoryLink) -> None:
    front = Netfront(link, rate=2_000_000)
    ref, _ = front.guest.page()
    front.send(*[abi.TX_REQUEST.pack(ref, 0, 0, 1, 4096)] * 100)
    assert len(link.sent) == 100
    front.close()


@given(
    requests=st.lists(
        st.one_of(
            st.binary(min_size=12, max_size=12),
            st.builds(
                abi.TX_REQUEST.pack,
                st.integers(0, 20),
                st.integers(0, 5000),
                st.integers(0, 15),
                st.integers(0, 65535),
                st.integers(0, 65535),
            ),
        ),
        max_size=40,
    )
)
def test_no_request_breaks_a_queue(requests: list[bytes]) -> None:
    guest = ScriptedGuest()
    for _ in range(8):
        guest.page()
    page = memoryview(bytearray(PAGE))
    front = FrontRing([page], 12, 4, 256)
    for request in requests:
        front.put(request)
    front.push()
    queue = TxQueue(BackRing([page], 12), guest.grants, MemoryLink(), Credit(None, 1))
    try:
        queue.serve()
    except RingError:
        pass
    else:
        assert front.waiting() == len(requests)
    assert guest.grants.mapped == {}


@given(slots=st.lists(st.binary(min_size=8, max_size=8), max_size=64), lengths=st.lists(st.integers(0, FRAME_MAX)))
def test_no_received_slot_breaks_a_queue(slots: list[bytes], lengths: list[int]) -> None:
    guest, link, page = ScriptedGuest(), MemoryLink(), memoryview(bytearray(PAGE))
    front = FrontRing([page], 8, 8, 256)
    for slot in slots:
        front.put(slot)
    front.push()
    for length in lengths[:20]:
        link.incoming.append((bytes(length), Offload()))
    queue = RxQueue(BackRing([page], 8), guest.grants, link, Abilities(True, True, True, True))
    queue.serve()
    assert front.waiting() <= len(slots)


def test_a_stream_carries_frames_with_whole_checksums() -> None:
    near, far = socket.socketpair()
    link = StreamLink(near)
    front = Netfront(link)
    ref, page = front.guest.page()
    frame = udp4(b"hello", blank=True)
    page[: len(frame)] = frame
    assert front.send(abi.TX_REQUEST.pack(ref, 0, TxFlag.CSUM_BLANK, 1, len(frame))) == [(1, 0)]
    far.settimeout(30)
    assert far.recv(2000) == len(frame).to_bytes(4, "big") + udp4(b"hello", blank=False)
    assert front.send(abi.TX_REQUEST.pack(ref, 0, TxFlag.EXTRA_INFO, 1, 60), abi.EXTRA_GSO.pack(1, 0, 1448, 1, 0)) == [
        (1, -1),
        (0, 1),
    ]
    frames = [bytes([number % 250]) * (60 + number) for number in range(200)]
    stream = b"".join(len(each).to_bytes(4, "big") + each for each in frames)
    front.post(32)

    def send_in_pieces() -> None:
        for start in range(0, len(stream), 777):
            far.sendall(stream[start : start + 777])

    # The link takes no more than the guest has room for, and a socket holds little.
    sender = threading.Thread(target=send_in_pieces)
    sender.start()
    got: list[bytes] = []
    while len(got) < len(frames):
        front.guest.wait(lambda: front.rx.waiting() > 0)
        while front.rx.waiting():
            got.append(front.received()[2])
            front.post(1)
    assert got == frames
    sender.join()
    far.close()
    assert front.send(abi.TX_REQUEST.pack(ref, 0, 0, 1, 60))[0][0] == 1
    front.close()


def test_a_stream_whose_reader_is_slow_drops_whole_frames() -> None:
    near, far = socket.socketpair()
    link = StreamLink(near)
    for number in range(2000):
        link.send([bytes([number % 250]) * 1000], Offload())
    assert link.unsent
    far.setblocking(False)
    data = bytearray()
    while True:
        try:
            data += far.recv(1 << 20)
        except BlockingIOError:
            if not link.unsent:
                break
            assert link.receive(bytearray(FRAME_MAX)) is None
    assert len(data) % 1004 == 0
    assert all(data[start : start + 4] == b"\0\0\x03\xe8" for start in range(0, len(data), 1004))
    link.close()
    far.close()


def test_the_header_for_the_kernel_says_where_the_checksum_is() -> None:
    assert vnet_header(b"x" * 60, Offload()) == bytes(10)
    frame = tcp6(b"x" * 3000, blank=True)
    start = 14 + 4 + 40 + 8
    expected = struct.pack("<BBHHHH", 1, 4, start + 20, 1440, start, 16)
    assert vnet_header(frame[:256], Offload(True, True, 1440, True)) == expected
    with pytest.raises(ValueError, match="checksum"):
        vnet_header(b"x" * 60, Offload(blank=True))


def open_tap() -> int:
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        pytest.skip(f"/dev/net/tun can't be opened: {error.strerror}")
    try:
        fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", b"pyxentest%d", 0x0002 | 0x1000 | 0x4000))
    except OSError as error:
        os.close(fd)
        pytest.skip(f"no tap device can be made: {error.strerror}")
    return fd


def test_a_tap_takes_frames_and_says_what_is_to_be_done_with_them() -> None:
    link = TapLink(open_tap())
    link.accept(blank=True, tso4=True, tso6=True)
    link.use(True)
    assert link.receive(bytearray(FRAME_MAX)) is None
    # The interface is down: frames are refused, which is the guest's loss and no one else's.
    with pytest.raises(OSError, match=r"Input/output error"):
        link.send([udp4(b"x", blank=True)], Offload(blank=True))
    link.close()

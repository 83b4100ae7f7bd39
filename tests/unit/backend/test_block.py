"""A vbd against a scripted blkfront, on real files and real NBD servers."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyxen.abi import blkif as abi
from pyxen.abi.blkif import Operation, Status
from pyxen.abi.xenbus import XenbusState
from pyxen.backend.block import Vbd, attach, describe, vdev_number
from pyxen.backend.block_queue import BlockQueue
from pyxen.backend.disk import Disk, RawDisk
from pyxen.backend.granted import GrantedPages
from pyxen.backend.limit import Limit
from pyxen.backend.nbd import NbdDisk
from pyxen.backend.ring import BackRing
from pyxen.backend.xenbus import Address, Device, introduce
from pyxen.errors import EngineError, NotFound, Unavailable
from tests.unit.backend.guest import PAGE, FrontRing, ScriptedGuest

SIZE = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(index * 7 % 256 for index in range(4096)) * (SIZE // 4096))
    return path


class Blkfront:
    """A front end with one queue."""

    def __init__(self, disk: Disk, *, bits: int = 64, persistent: bool = False, order: int | None = None) -> None:
        self.guest = ScriptedGuest()
        self.bits = bits
        front, back = describe(vdev_number("xvda"), mode="w", cdrom=False)
        introduce(self.guest.local, Address(1, "vbd", 51712), frontend=front, backend=back)
        self.device = attach(self.guest.local, self.guest, 51712, disk, self.guest.call_soon)
        pages = [self.guest.page() for _ in range(1 << (order or 0))]
        self.ring = FrontRing(
            [page for _, page in pages], abi.ENTRY_SIZE[bits], abi.RESPONSE.size(bits), 32 << (order or 0)
        )
        self.port = self.guest.port()
        if order is None:
            self.tell("ring-ref", pages[0][0])
        else:
            self.tell("ring-page-order", order)
            for number, (ref, _) in enumerate(pages):
                self.tell(f"ring-ref{number}", ref)
        self.tell("event-channel", self.port)
        self.tell("protocol", "x86_64-abi" if bits == 64 else "x86_32-abi")
        self.tell("feature-persistent", int(persistent))
        self.tell("state", 3)

    def tell(self, key: str, value: str | int) -> None:
        self.guest.write(f"device/vbd/51712/{key}", value)

    def state(self) -> int:
        return int(self.guest.local.read("/local/domain/0/backend/vbd/1/51712/state") or 0)

    def ask(self, request: bytes) -> Status:
        self.ring.put(request)
        self.ring.push()
        self.guest.evtchn.bound[self.port].callback()
        self.guest.wait(lambda: self.ring.waiting() > 0)
        response = abi.RESPONSE.unpack(self.ring.fetch(), self.bits)
        assert response.id == 0x1234567887654321
        return Status(response.status)

    def request(self, operation: int, sector: int, segments: list[tuple[int, int, int]]) -> bytes:
        head = abi.REQUEST.pack(abi.Request(operation, len(segments), 0, 0x1234567887654321, sector), self.bits)
        return head + b"".join(abi.SEGMENT.pack(*segment) for segment in segments)

    def close(self) -> None:
        self.device.destroy()
        assert self.guest.grants.mapped == {}


@pytest.fixture(params=[64, 32])
def blkfront(image: Path, request: pytest.FixtureRequest) -> Iterator[Blkfront]:
    front = Blkfront(RawDisk.open(image, read_only=False), bits=request.param)
    yield front
    front.close()


@pytest.mark.parametrize(
    ("layout", "size64", "size32"), [(abi.REQUEST, 24, 20), (abi.DISCARD, 32, 28), (abi.RESPONSE, 16, 12)]
)
def test_structures_have_xens_sizes(layout: object, size64: int, size32: int) -> None:
    assert isinstance(layout, type(abi.REQUEST))
    assert (layout.size(64), layout.size(32)) == (size64, size32)
    assert abi.SEGMENT.size == 8
    assert (abi.INDIRECT.offset(64, "grefs"), abi.INDIRECT.offset(32, "grefs")) == (28, 24)
    for bits in (64, 32):
        assert abi.REQUEST.size(bits) + 11 * abi.SEGMENT.size == abi.ENTRY_SIZE[bits]


@pytest.mark.parametrize(
    ("name", "number"), [("xvda", 51712), ("xvda1", 51713), ("xvdb", 51728), ("hda", 51712), ("xvdp", 51952),
                         ("xvdq", 1 << 28 | 16 << 8), ("xvdaa", 1 << 28 | 26 << 8), ("xvda16", 1 << 28 | 16)]
)  # fmt: skip
def test_devices_are_numbered_as_in_xen(name: str, number: int) -> None:
    assert vdev_number(name) == number


def test_a_disk_shows_its_size_and_features(blkfront: Blkfront) -> None:
    assert blkfront.state() == XenbusState.CONNECTED
    back = "/local/domain/0/backend/vbd/1/51712"
    shown = {name: blkfront.guest.local.read(f"{back}/{name}") for name in blkfront.guest.local.names(back)}
    assert (shown["sectors"], shown["sector-size"], shown["info"]) == ("2048", "512", "0")
    assert shown["feature-discard"] == shown["feature-flush-cache"] == shown["feature-persistent"] == "1"


def test_what_is_written_is_read_again(blkfront: Blkfront, image: Path) -> None:
    before = image.read_bytes()
    first_ref, first = blkfront.guest.page()
    second_ref, second = blkfront.guest.page()
    assert blkfront.ask(blkfront.request(Operation.READ, 3, [(first_ref, 1, 6), (second_ref, 0, 7)])) is Status.OKAY
    assert bytes(first[512 : 7 * 512]) + bytes(second) == before[3 * 512 : 17 * 512]
    assert bytes(first[:512]) == bytes(512)
    first[:] = b"x" * PAGE
    assert blkfront.ask(blkfront.request(Operation.WRITE, 2040, [(first_ref, 0, 7)])) is Status.OKAY
    assert blkfront.ask(blkfront.request(Operation.FLUSH, 0, [])) is Status.OKAY
    assert blkfront.ask(blkfront.request(Operation.WRITE_BARRIER, 0, [(first_ref, 7, 7)])) is Status.OKAY
    after = image.read_bytes()
    assert after == b"x" * 512 + before[512:-4096] + b"x" * 4096


def test_indirect_requests_carry_more(blkfront: Blkfront, image: Path) -> None:
    pages = [blkfront.guest.page() for _ in range(40)]
    table_ref, table = blkfront.guest.page()
    for index, (ref, _) in enumerate(pages):
        abi.SEGMENT.pack_into(table, index * 8, ref, 0, 7)
    grefs = abi.GREFS.pack(table_ref, 0, 0, 0, 0, 0, 0, 0)
    request = abi.Indirect(Operation.INDIRECT, Operation.READ, 40, 0x1234567887654321, 8, 0, 0, grefs)
    assert blkfront.ask(abi.INDIRECT.pack(request, blkfront.bits)) is Status.OKAY
    assert b"".join(bytes(page) for _, page in pages) == image.read_bytes()[4096 : 41 * 4096]
    for bad in (request._replace(nr_segments=0), request._replace(nr_segments=257), request._replace(indirect_op=5)):
        assert blkfront.ask(abi.INDIRECT.pack(bad, blkfront.bits)) is Status.ERROR


def test_discard_frees_blocks(blkfront: Blkfront, image: Path) -> None:
    discard = abi.Discard(Operation.DISCARD, 0, 0, 0x1234567887654321, 8, 16)
    assert blkfront.ask(abi.DISCARD.pack(discard, blkfront.bits)) is Status.OKAY
    assert image.read_bytes()[4096 : 3 * 4096] == bytes(8192)
    beyond = discard._replace(sector=2**64 - 1)
    assert blkfront.ask(abi.DISCARD.pack(beyond, blkfront.bits)) is Status.ERROR


def test_what_cannot_be_is_refused_and_the_ring_goes_on(blkfront: Blkfront, image: Path) -> None:
    before = image.read_bytes()
    ref, _ = blkfront.guest.page()
    read_only, _ = blkfront.guest.page(readonly=True)
    request = blkfront.request
    for bad in (
        request(Operation.READ, 2048, [(ref, 0, 0)]),
        request(Operation.READ, 2047, [(ref, 0, 1)]),
        request(Operation.READ, 2**64 - 1, [(ref, 0, 7)]),
        request(Operation.WRITE, 2**63, [(ref, 0, 7)]),
        request(Operation.READ, 0, [(9999, 0, 7)]),
        request(Operation.READ, 0, [(read_only, 0, 7)]),
        request(Operation.READ, 0, [(ref, 3, 2)]),
        request(Operation.READ, 0, [(ref, 0, 8)]),
        request(Operation.WRITE, 0, []),
        request(Operation.READ, 0, [(ref, 0, 0)] * 11).replace(b"\x00\x0b", b"\x00\x0c", 1),
    ):
        assert blkfront.ask(bad) is Status.ERROR
    assert blkfront.ask(request(77, 0, [(ref, 0, 7)])) is Status.EOPNOTSUPP
    assert blkfront.ask(request(Operation.WRITE, 0, [(read_only, 0, 0)])) is Status.OKAY
    assert image.read_bytes()[512:] == before[512:]


def test_persistent_grants_stay_mapped(image: Path) -> None:
    front = Blkfront(RawDisk.open(image, read_only=False), persistent=True)
    ref, _ = front.guest.page()
    other, _ = front.guest.page(readonly=True)
    for _ in range(5):
        assert front.ask(front.request(Operation.WRITE, 0, [(ref, 0, 7), (other, 0, 0)])) is Status.OKAY
    assert front.guest.grants.mapped[ref] == front.guest.grants.mapped[other] == 1
    assert front.ask(front.request(Operation.READ, 0, [(other, 0, 7)])) is Status.ERROR
    assert front.guest.grants.maps == 1 + 2
    front.close()


def test_a_ring_of_several_pages(image: Path) -> None:
    front = Blkfront(RawDisk.open(image, read_only=False), order=2)
    ref, page = front.guest.page()
    for sector in range(300):
        assert front.ask(front.request(Operation.READ, sector, [(ref, 0, 0)])) is Status.OKAY
    assert bytes(page[:512]) == image.read_bytes()[299 * 512 : 300 * 512]
    front.close()


def test_a_read_only_disk_stays_as_it_is(image: Path) -> None:
    before = image.read_bytes()
    front = Blkfront(RawDisk.open(image, read_only=True))
    ref, page = front.guest.page()
    page[:] = b"x" * PAGE
    assert front.guest.local.read("/local/domain/0/backend/vbd/1/51712/info") == "4"
    assert front.ask(front.request(Operation.WRITE, 0, [(ref, 0, 7)])) is Status.ERROR
    discard = abi.Discard(Operation.DISCARD, 0, 0, 0x1234567887654321, 0, 8)
    assert front.ask(abi.DISCARD.pack(discard, 64)) is Status.EOPNOTSUPP
    assert image.read_bytes() == before
    front.close()


def test_a_broken_ring_disconnects_the_device(image: Path) -> None:
    front = Blkfront(RawDisk.open(image, read_only=False))
    front.ring.words[0] = 1000
    front.guest.evtchn.bound[front.port].callback()
    front.guest.wait(lambda: front.state() == XenbusState.CLOSING)
    assert "1000 requests" in (front.guest.local.read(front.device.address.error) or "")
    front.close()


@pytest.mark.parametrize(
    ("key", "value"),
    [("ring-ref", 9999), ("event-channel", 77), ("protocol", "arm-abi"), ("multi-queue-num-queues", 2)],
)
def test_a_front_end_that_offers_nonsense_is_refused(image: Path, key: str, value: str | int) -> None:
    guest = ScriptedGuest()
    introduce(guest.local, Address(1, "vbd", 51712))
    driver = Vbd(guest, RawDisk.open(image, read_only=False), guest.call_soon)
    device = Device(guest.local, Address(1, "vbd", 51712), driver)
    offered: dict[str, str | int] = {"ring-ref": guest.page()[0], "event-channel": guest.port(), key: value, "state": 3}
    for name, content in offered.items():
        guest.write(f"device/vbd/51712/{name}", content)
    assert device.state is XenbusState.CLOSING
    assert guest.grants.mapped == {}
    device.destroy()


def test_a_front_end_that_says_it_has_one_queue_writes_its_keys_where_they_always_were(image: Path) -> None:
    guest = ScriptedGuest()
    introduce(guest.local, Address(1, "vbd", 51712))
    driver = Vbd(guest, RawDisk.open(image, read_only=False), guest.call_soon, queues=2)
    device = Device(guest.local, Address(1, "vbd", 51712), driver)
    offered = {"ring-ref": guest.page()[0], "event-channel": guest.port(), "multi-queue-num-queues": 1, "state": 3}
    for name, content in offered.items():
        guest.write(f"device/vbd/51712/{name}", content)
    assert device.state is XenbusState.CONNECTED
    device.destroy()


def test_several_queues_work_side_by_side(image: Path) -> None:
    guest = ScriptedGuest()
    introduce(guest.local, Address(1, "vbd", 51712))
    driver = Vbd(guest, RawDisk.open(image, read_only=False), guest.call_soon, queues=2)
    device = Device(guest.local, Address(1, "vbd", 51712), driver)
    rings, ports = [], []
    guest.write("device/vbd/51712/multi-queue-num-queues", 2)
    for number in range(2):
        ref, page = guest.page()
        rings.append(FrontRing([page], 112, 16, 32))
        ports.append(guest.port())
        guest.write(f"device/vbd/51712/queue-{number}/ring-ref", ref)
        guest.write(f"device/vbd/51712/queue-{number}/event-channel", ports[-1])
    guest.write("device/vbd/51712/state", 3)
    ref, _ = guest.page()
    for ring, port in zip(rings, ports, strict=True):
        ring.put(abi.REQUEST.pack(abi.Request(0, 1, 0, 5, 0), 64) + abi.SEGMENT.pack(ref, 0, 7))
        ring.push()
        guest.evtchn.bound[port].callback()
    guest.wait(lambda: all(ring.waiting() for ring in rings))
    assert driver.read_bytes == 2 * PAGE
    device.destroy()
    assert guest.grants.mapped == {}


@given(
    requests=st.lists(st.binary(min_size=112, max_size=112), min_size=1, max_size=32), bits=st.sampled_from([32, 64])
)
def test_no_request_breaks_a_queue(requests: list[bytes], bits: int) -> None:
    guest = ScriptedGuest()
    for _ in range(16):
        guest.page()
    ref, page = guest.page()
    del ref
    front = FrontRing([page], abi.ENTRY_SIZE[bits], abi.RESPONSE.size(bits), 32)
    disk = MemoryDisk()
    pages = GrantedPages(guest.grants, persistent=False)
    ring = BackRing([page], abi.ENTRY_SIZE[bits])
    queue = BlockQueue(ring, pages, disk, Limit(None, None), bits=bits, most_indirect=256)
    for raw in requests:
        front.put(raw[: abi.ENTRY_SIZE[bits]])
    front.push()
    queue.serve()
    assert front.waiting() == len(requests)
    assert guest.grants.mapped == {}


class MemoryDisk:
    size, sector_size, read_only, discards = 1 << 16, 512, False, True

    def read_into(self, offset: int, views: Sequence[memoryview]) -> None:
        assert offset >= 0 and offset + sum(map(len, views)) <= self.size

    write_from = read_into

    def flush(self) -> None: ...

    def discard(self, offset: int, length: int) -> None:
        assert offset >= 0 and offset + length <= self.size

    def cancel(self, on: bool) -> None: ...

    def close(self) -> None: ...


class FaultyDisk(MemoryDisk):
    def read_into(self, offset: int, views: Sequence[memoryview]) -> None:
        raise KeyError("fault")


def test_a_fault_of_our_own_closes_the_device(capsys: pytest.CaptureFixture[str]) -> None:
    front = Blkfront(FaultyDisk())
    ref, _ = front.guest.page()
    front.ring.put(front.request(Operation.READ, 0, [(ref, 0, 7)]))
    front.ring.push()
    front.guest.evtchn.bound[front.port].callback()
    front.guest.wait(lambda: front.state() == XenbusState.CLOSING)
    assert front.guest.local.read(front.device.address.error) == "KeyError: 'fault'"
    front.close()
    assert "Traceback" in capsys.readouterr().err


def test_a_disk_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        RawDisk.open(tmp_path / "none", read_only=True)
    with pytest.raises(Unavailable):
        RawDisk.open(tmp_path, read_only=False)
    with pytest.raises(Unavailable):
        NbdDisk.at(tmp_path / "none")


@pytest.fixture
def qcow2(tmp_path: Path) -> Iterator[Path]:
    """The socket of a qemu-nbd that serves a fresh qcow2 image of 64 MiB."""
    if shutil.which("qemu-nbd") is None:
        pytest.skip("qemu-nbd is not installed (apt-get install qemu-utils)")
    path, socket = tmp_path / "disk.qcow2", tmp_path / "nbd.sock"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), "64M"], check=True)
    # It listens before it goes into the background, and ends with its last client.
    subprocess.run(
        ["qemu-nbd", "--fork", "--discard=unmap", "-f", "qcow2", f"--socket={socket}", str(path)], check=True
    )
    yield socket


def test_qcow2_through_an_nbd_server(qcow2: Path) -> None:
    disk = NbdDisk.at(qcow2)
    assert (disk.size, disk.read_only, disk.discards) == (64 << 20, False, True)
    front = Blkfront(disk)
    refs = [front.guest.page() for _ in range(3)]
    for index, (_, page) in enumerate(refs):
        page[:] = os.urandom(PAGE) if index else bytes(PAGE)
    written = [bytes(page) for _, page in refs]
    segments = [(ref, 0, 7) for ref, _ in refs]
    assert front.ask(front.request(Operation.WRITE, 1000, segments)) is Status.OKAY
    assert front.ask(front.request(Operation.FLUSH, 0, [])) is Status.OKAY
    for _, page in refs:
        page[:] = bytes(PAGE)
    assert front.ask(front.request(Operation.READ, 1000, segments)) is Status.OKAY
    assert [bytes(page) for _, page in refs] == written
    disk.write_zeroes(1000 * 512, PAGE * 3)
    discard = abi.Discard(Operation.DISCARD, 0, 0, 0x1234567887654321, 8, 16)
    assert front.ask(abi.DISCARD.pack(discard, 64)) is Status.OKAY
    assert front.ask(front.request(Operation.READ, 1000, segments)) is Status.OKAY
    assert all(bytes(page) == bytes(PAGE) for _, page in refs)
    front.close()


def test_an_export_that_is_not_there_is_said_so(qcow2: Path) -> None:
    with pytest.raises(EngineError, match="refuses the export 'nothing'"):
        NbdDisk.at(qcow2, "nothing")
    NbdDisk.at(qcow2).close()


def test_the_numbers_of_the_segment_table() -> None:
    assert struct.calcsize("<8I") == abi.GREFS.size == 32

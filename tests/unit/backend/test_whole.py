"""A disk and an interface on a real Domain: hypercalls, grant entries and rings written as a guest's kernel would."""

from __future__ import annotations

import struct
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import pytest

from pyxen.abi import blkif, netif
from pyxen.abi import event_channel as evtchn
from pyxen.abi import hypercall as nr
from pyxen.abi.memory import ADD_TO_PHYSMAP, ADD_TO_PHYSMAP_ARG, SPACE_GRANT_TABLE, AddToPhysmap
from pyxen.abi.shared_info import DOMID_SELF
from pyxen.backend import block, net
from pyxen.backend.disk import RawDisk
from pyxen.backend.xenbus import Address, introduce
from pyxen.xenstore.local import Local
from pyxen.xenstore.store import Store
from tests.unit.backend.guest import PATIENCE_S, FrontRing
from tests.unit.backend.test_net import MAC, MemoryLink
from tests.unit.hypervisor.hypercalls.scripted import DOMID, OUTSIDE, PAGE, ScriptedGuest
from tests.unit.xenstore.talk import Party


class Kernel(ScriptedGuest):
    """A guest with a grant table and a store."""

    def __init__(self) -> None:
        super().__init__()
        self.shared_info = self.place_shared_info()
        table = AddToPhysmap(DOMID_SELF, 0, SPACE_GRANT_TABLE, 0, OUTSIDE)
        assert self.op(nr.MEMORY_OP, ADD_TO_PHYSMAP, ADD_TO_PHYSMAP_ARG, table)[0] == 0
        self.local = Local(Store())
        self.party = Party(self.local.store, DOMID)
        self.soon: deque[Callable[[], None]] = deque()
        self._refs = 8

    def grant(self) -> tuple[int, memoryview]:
        """A fresh page, granted to Domain-0."""
        gfn, ref = self.page(), self._refs
        self._refs += 1
        self.memory.write(OUTSIDE * PAGE + ref * 8, struct.pack("<HHI", 1, 0, gfn))
        return ref, self.memory.view(gfn * PAGE, PAGE)

    def in_use(self, ref: int) -> bool:
        return bool(self.memory.u16(OUTSIDE * PAGE + ref * 8) & 0x18)

    def offer_port(self) -> int:
        value = evtchn.AllocUnbound(DOMID_SELF, 0, 0)
        result, value = self.op(nr.EVENT_CHANNEL_OP, evtchn.ALLOC_UNBOUND, evtchn.ALLOC_UNBOUND_ARG, value)
        assert result == 0
        return value.port

    def send_event(self, port: int) -> None:
        assert self.call(nr.EVENT_CHANNEL_OP, evtchn.SEND, self.store(struct.pack("<I", port))) == 0

    def pending(self, port: int) -> bool:
        return bool(self.memory.u64(self.shared_info + 2048 + port // 64 * 8) >> port % 64 & 1)

    def write(self, path: str, value: str | int) -> None:
        self.party.write(path, str(value).encode())
        self.local.settle()

    def wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, "nothing happened"
            time.sleep(0.0005)


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


def test_a_disk(kernel: Kernel, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(range(256)) * 256)
    introduce(kernel.local, Address(DOMID, "vbd", 51712))
    device = block.attach(kernel.local, kernel.domain, 51712, RawDisk.open(image, read_only=False), kernel.soon.append)
    ring_ref, ring_page = kernel.grant()
    data_ref, data = kernel.grant()
    port = kernel.offer_port()
    for key, value in {"ring-ref": ring_ref, "event-channel": port, "state": 3}.items():
        kernel.write(f"device/vbd/51712/{key}", value)
    ring = FrontRing([ring_page], 112, 16, 32)
    request = blkif.REQUEST.pack(blkif.Request(blkif.Operation.READ, 1, 0, 5, 8), 64)
    ring.put(request + blkif.SEGMENT.pack(data_ref, 0, 7))
    ring.push()
    kernel.send_event(port)
    kernel.wait(lambda: ring.waiting() == 1)
    assert blkif.RESPONSE.unpack(ring.fetch(), 64) == (5, 0, 0)
    assert bytes(data) == image.read_bytes()[4096:8192]
    kernel.wait(lambda: kernel.pending(port))
    assert kernel.in_use(ring_ref)
    assert not kernel.in_use(data_ref)
    kernel.write("device/vbd/51712/state", 6)
    assert not kernel.in_use(ring_ref)
    device.destroy()


def test_an_interface(kernel: Kernel) -> None:
    link = MemoryLink()
    front, back = net.describe(0, MAC)
    introduce(kernel.local, Address(DOMID, "vif", 0), frontend=front, backend=back)
    device = net.attach(kernel.local, kernel.domain, 0, [link], kernel.soon.append)
    (tx_ref, tx_page), (rx_ref, rx_page), (out_ref, out), (in_ref, into) = (kernel.grant() for _ in range(4))
    port = kernel.offer_port()
    offered = {"tx-ring-ref": tx_ref, "rx-ring-ref": rx_ref, "event-channel": port, "request-rx-copy": 1, "state": 4}
    for key, value in offered.items():
        kernel.write(f"device/vif/0/{key}", value)
    out[:60] = b"o" * 60
    tx, rx = FrontRing([tx_page], 12, 4, 256), FrontRing([rx_page], 8, 8, 256)
    tx.put(netif.TX_REQUEST.pack(out_ref, 0, 0, 1, 60))
    tx.push()
    rx.put(netif.RX_REQUEST.pack(0, in_ref))
    rx.push()
    kernel.send_event(port)
    link.arrive(b"i" * 90)
    kernel.wait(lambda: tx.waiting() == 1 and rx.waiting() == 1)
    assert [frame for frame, _ in link.sent] == [b"o" * 60]
    assert netif.RX_RESPONSE.unpack(rx.fetch()) == (0, 0, 0, 90)
    assert bytes(into[:90]) == b"i" * 90
    device.destroy()
    assert not any(kernel.in_use(ref) for ref in (tx_ref, rx_ref, out_ref, in_ref))

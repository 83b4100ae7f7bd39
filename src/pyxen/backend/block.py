"""A virtual block device (vbd): its offer, its rings, one thread for each of them."""

from __future__ import annotations

from collections.abc import Mapping

from pyxen.abi import blkif as abi
from pyxen.abi.blkif import VDisk
from pyxen.backend.block_queue import BlockQueue
from pyxen.backend.disk import Disk
from pyxen.backend.granted import GrantedPages
from pyxen.backend.guest import CallSoon, Guest
from pyxen.backend.limit import Limit
from pyxen.backend.ring import BackRing
from pyxen.backend.worker import Worker
from pyxen.backend.xenbus import Address, Device, DeviceError, Frontend
from pyxen.xenstore.local import Local

_RING_ORDER_MAX = 4
_INDIRECT_SEGMENTS = 256
_XVD_MAJOR = 202


class _Queue:
    """A ring with its worker, and the ring's own pages."""

    def __init__(self, worker: Worker, queue: BlockQueue, refs: list[int]) -> None:
        self.worker = worker
        self.queue = queue
        self.refs = refs


class Vbd:
    """The driver of one vbd, for ``Device``. Owns ``disk``."""

    def __init__(self, guest: Guest, disk: Disk, call_soon: CallSoon, *, cdrom: bool = False, queues: int = 1) -> None:
        self._guest = guest
        self._disk = disk
        self.limit = Limit(None, None)
        self._call_soon = call_soon
        self._cdrom = cdrom
        self._most_queues = queues
        self._queues: list[_Queue] = []
        self.device: Device | None = None
        """Set by whoever makes the Device: it is told when a ring breaks."""

    @property
    def read_bytes(self) -> int:
        return sum(each.queue.read_bytes for each in self._queues)

    @property
    def written_bytes(self) -> int:
        return sum(each.queue.written_bytes for each in self._queues)

    def offer(self) -> Mapping[str, str | int]:
        offered: dict[str, str | int] = {
            "feature-flush-cache": 1,
            "feature-barrier": 1,
            "feature-persistent": 1,
            "feature-max-indirect-segments": _INDIRECT_SEGMENTS,
            "max-ring-page-order": _RING_ORDER_MAX,
            "multi-queue-max-queues": self._most_queues,
        }
        if self._disk.discards:
            size = self._disk.sector_size
            offered |= {"feature-discard": 1, "discard-granularity": size, "discard-alignment": 0, "discard-secure": 0}
        return offered

    def connect(self, frontend: Frontend) -> Mapping[str, str | int]:
        bits = abi.PROTOCOLS.get(frontend.text("protocol") or "x86_64-abi")
        if bits is None:
            raise DeviceError(f"the protocol {frontend.text('protocol')!r} is unknown")
        count = frontend.number("multi-queue-num-queues", 1)
        if not 1 <= count <= self._most_queues:
            raise DeviceError(f"{count} queues were asked for, {self._most_queues} offered")
        order = frontend.number("ring-page-order", 0)
        if order > _RING_ORDER_MAX:
            raise DeviceError(f"a ring of 2^{order} pages was asked for, 2^{_RING_ORDER_MAX} offered")
        single = frontend.text("ring-page-order") is None
        persistent = frontend.flag("feature-persistent")
        try:
            for number in range(count):
                # A single queue's keys lie where they were before there could be several.
                part = frontend if count == 1 else frontend.below(f"queue-{number}")
                keys = ["ring-ref"] if single else [f"ring-ref{page}" for page in range(1 << order)]
                self._open(number, [part.number(key) for key in keys], part.number("event-channel"), bits, persistent)
        except BaseException:
            self.disconnect()
            raise
        return self.geometry()

    @property
    def disk(self) -> Disk:
        return self._disk

    def geometry(self) -> dict[str, str | int]:
        """What the front end shows as the disk. ``Device.update`` takes it, after the disk has grown."""
        info = (VDisk.CDROM | VDisk.REMOVABLE if self._cdrom else 0) | (VDisk.READONLY if self._disk.read_only else 0)
        return {
            "sectors": self._disk.size // abi.SECTOR_SIZE,
            "sector-size": self._disk.sector_size,
            "physical-sector-size": self._disk.sector_size,
            "info": info,
        }

    def disconnect(self) -> None:
        self.limit.cancel(True)
        self._disk.cancel(True)
        for each in self._queues:
            each.worker.stop()
            each.queue.close()
            for ref in each.refs:
                self._guest.grants.unmap(ref)
        self._queues.clear()
        self._disk.cancel(False)
        self.limit.cancel(False)

    def settle(self) -> None:
        self.limit.cancel(True)
        for each in list(self._queues):
            each.worker.settle()
        if not self._disk.read_only:
            self._disk.flush()
        self.limit.cancel(False)

    def close(self) -> None:
        self._disk.close()

    def _open(self, number: int, refs: list[int], port: int, bits: int, persistent: bool) -> None:
        mapped: list[int] = []
        try:
            pages = []
            for ref in refs:
                pages.append(self._guest.grants.map(ref, write=True))
                mapped.append(ref)
            ring = BackRing(pages, abi.ENTRY_SIZE[bits])
            granted = GrantedPages(self._guest.grants, persistent=persistent)
            queue = BlockQueue(ring, granted, self._disk, self.limit, bits=bits, most_indirect=_INDIRECT_SEGMENTS)
            worker = Worker(f"vbd-queue-{number}", queue.serve, queue.idle, self._call_soon, self._failed)
            worker.start(self._guest.evtchn.bind_backend(port, worker.wake))
        except BaseException:
            for ref in mapped:
                self._guest.grants.unmap(ref)
            raise
        self._queues.append(_Queue(worker, queue, refs))

    def _failed(self, why: str) -> None:
        if self.device is not None:
            self.device.fail(why)


def attach(local: Local, guest: Guest, devid: int, disk: Disk, call_soon: CallSoon, *, cdrom: bool = False) -> Device:
    """The running back end of a vbd that ``introduce`` has written."""
    driver = Vbd(guest, disk, call_soon, cdrom=cdrom)
    device = driver.device = Device(local, Address(guest.domid, "vbd", devid), driver)
    return device


def describe(vdev: int, *, mode: str, cdrom: bool) -> tuple[dict[str, str | int], dict[str, str | int]]:
    """What the tool stack writes for a vbd: the front end's and the back end's keys, for ``introduce``."""
    front: dict[str, str | int] = {"virtual-device": vdev, "device-type": "cdrom" if cdrom else "disk"}
    back: dict[str, str | int] = {"mode": mode, "removable": int(cdrom), "type": "phy"}
    return front, back


def vdev_number(name: str) -> int:
    """The number of a virtual device: ``xvda`` is 51712, ``xvda1`` 51713, ``xvdq`` and later of the extended form.

    Names that are not Xen's own (hda, sda, vda) count as the xvd of the same letter: a PVH guest knows no other.
    """
    letters = name.removeprefix("xvd").removeprefix("hd").removeprefix("sd").removeprefix("vd")
    disk_letters = letters.rstrip("0123456789")
    disk = 0
    for letter in disk_letters:
        disk = disk * 26 + ord(letter) - ord("a") + 1
    disk -= 1
    partition = int(letters[len(disk_letters) :] or 0)
    if disk < 16 and partition < 16:
        return _XVD_MAJOR << 8 | disk << 4 | partition
    return 1 << 28 | disk << 8 | partition

"""A virtual network interface (vif): its offer, its rings, one thread for each pair of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyxen.abi import netif as abi
from pyxen.backend.guest import CallSoon, Guest
from pyxen.backend.limit import Credit
from pyxen.backend.link import Link
from pyxen.backend.net_queue import NetQueue
from pyxen.backend.net_rx import Abilities, RxQueue
from pyxen.backend.net_tx import TxQueue
from pyxen.backend.ring import BackRing
from pyxen.backend.xenbus import Address, Device, DeviceError, Frontend
from pyxen.xenstore.local import Local


class Vif:
    """The driver of one vif, for ``Device``. Owns ``links``, one for each queue; ``rate`` is in bytes a second."""

    def __init__(self, guest: Guest, links: Sequence[Link], call_soon: CallSoon, *, rate: int | None = None) -> None:
        self._guest = guest
        self._links = tuple(links)
        self._call_soon = call_soon
        self._rate = rate
        self._queues: list[tuple[NetQueue, tuple[int, int]]] = []
        self.device: Device | None = None
        """Set by whoever makes the Device: it is told when a ring breaks."""

    @property
    def sent_bytes(self) -> int:
        """By the guest."""
        return sum(queue.tx.bytes for queue, _ in self._queues)

    @property
    def received_bytes(self) -> int:
        return sum(queue.rx.bytes for queue, _ in self._queues)

    def limit(self, rate: int | None) -> None:
        """Let the guest send so many bytes a second from now on; None: as it likes."""
        self._rate = rate
        for queue, _ in self._queues:
            queue.tx.credit.set(_share(rate, len(self._queues)))
            queue.wake()

    def offer(self) -> Mapping[str, str | int]:
        segments = int(all(link.segments for link in self._links))
        return {
            "feature-sg": 1,
            "feature-gso-tcpv4": segments,
            "feature-gso-tcpv6": segments,
            "feature-ipv6-csum-offload": 1,
            "feature-rx-copy": 1,
            "feature-rx-flip": 0,
            "feature-split-event-channels": 1,
            "multi-queue-max-queues": len(self._links),
        }

    def connect(self, frontend: Frontend) -> Mapping[str, str | int]:
        if not frontend.flag("request-rx-copy"):
            raise DeviceError("the front end does not ask for copied packets, the only kind there is")
        count = frontend.number("multi-queue-num-queues", 1)
        if not 1 <= count <= len(self._links):
            raise DeviceError(f"{count} queues were asked for, {len(self._links)} offered")
        abilities = _abilities(frontend)
        try:
            for number, link in enumerate(self._links):
                link.use(number < count)
            for number in range(count):
                link = self._links[number]
                link.accept(blank=abilities.blank, tso4=abilities.tso4, tso6=abilities.tso6)
                # A single queue's keys lie where they were before there could be several.
                part = frontend if count == 1 else frontend.below(f"queue-{number}")
                self._open(number, part, link, abilities, count)
        except OSError as error:
            self.disconnect()
            raise DeviceError(f"the network device refuses: {error.strerror}") from error
        except BaseException:
            self.disconnect()
            raise
        return {}

    def disconnect(self) -> None:
        for queue, refs in self._queues:
            queue.stop()
            for ref in refs:
                self._guest.grants.unmap(ref)
        self._queues.clear()

    def settle(self) -> None:
        """Nothing: a frame that is not sent is one that is lost, as frames are."""

    def close(self) -> None:
        for link in self._links:
            link.close()

    def _open(self, number: int, frontend: Frontend, link: Link, abilities: Abilities, count: int) -> None:
        refs = (frontend.number("tx-ring-ref"), frontend.number("rx-ring-ref"))
        single = frontend.text("event-channel-tx") is None
        tx_number = frontend.number("event-channel" if single else "event-channel-tx")
        rx_number = tx_number if single else frontend.number("event-channel-rx")
        grants, evtchn = self._guest.grants, self._guest.evtchn
        pages: list[memoryview] = []
        ports = []
        try:
            for ref in refs:
                pages.append(grants.map(ref, write=True))
            # At least one packet of the largest size, or it could never be sent.
            credit = Credit(_share(self._rate, count), abi.PACKET_MAX)
            tx = TxQueue(BackRing(pages[:1], abi.TX_ENTRY_SIZE), grants, link, credit)
            rx = RxQueue(BackRing(pages[1:], abi.RX_ENTRY_SIZE), grants, link, abilities)
            queue = NetQueue(f"vif-queue-{number}", tx, rx, link, self._call_soon, self._failed)
            try:
                ports.append(evtchn.bind_backend(tx_number, queue.wake))
                ports.append(ports[0] if single else evtchn.bind_backend(rx_number, queue.wake))
            except BaseException:
                queue.stop()
                raise
            queue.start(*ports)
        except BaseException:
            for port in ports:
                port.close()
            for ref, _ in zip(refs, pages, strict=False):
                grants.unmap(ref)
            raise
        self._queues.append((queue, refs))

    def _failed(self, why: str) -> None:
        if self.device is not None:
            self.device.fail(why)


def _share(rate: int | None, queues: int) -> int | None:
    return None if rate is None else max(1, rate // queues)


def _abilities(frontend: Frontend) -> Abilities:
    # A kernel completes checksums for IPv4 and IPv6 or for neither.
    blank = not frontend.flag("feature-no-csum-offload") and frontend.flag("feature-ipv6-csum-offload")
    scatter = frontend.flag("feature-sg")
    segments = blank and scatter
    return Abilities(
        scatter,
        blank,
        segments and frontend.flag("feature-gso-tcpv4"),
        segments and frontend.flag("feature-gso-tcpv6"),
    )


def attach(
    local: Local, guest: Guest, devid: int, links: Sequence[Link], call_soon: CallSoon, *, rate: int | None = None
) -> Device:
    """The running back end of a vif that ``introduce`` has written."""
    driver = Vif(guest, links, call_soon, rate=rate)
    device = driver.device = Device(local, Address(guest.domid, "vif", devid), driver)
    return device


def describe(
    devid: int, mac: str, *, bridge: str | None = None, vifname: str | None = None
) -> tuple[dict[str, str | int], dict[str, str | int]]:
    """What the tool stack writes for a vif: the front end's and the back end's keys, for ``introduce``."""
    front: dict[str, str | int] = {"handle": devid, "mac": mac}
    back = front | ({"bridge": bridge} if bridge else {}) | ({"vifname": vifname} if vifname else {})
    return front, back

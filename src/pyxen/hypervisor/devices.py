"""A domain's disks, network interfaces and the agent's channel: written into xenstore, and served by their back ends.

Each has an id: a disk's is its vdev, an interface's as config.model.vif_device says.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pyxen.abi.agent import PORT_NAME
from pyxen.backend import block, channel, net
from pyxen.backend.disk import Disk, RawDisk
from pyxen.backend.link import Link, StreamLink, TapLink
from pyxen.backend.nbd import NbdDisk
from pyxen.backend.xenbus import Address, Device, introduce
from pyxen.config.model import Disk as DiskConfig
from pyxen.config.model import DiskAccess, DiskFormat, DiskType, Vif, vif_device
from pyxen.errors import Conflict, NotFound, Unsupported
from pyxen.hypervisor import agent
from pyxen.hypervisor.domain import Domain
from pyxen.xenstore.local import Local


@dataclass(frozen=True, slots=True)
class Sources:
    """What the engine has opened for this process.

    ``nbd``: by a disk's vdev, the socket of a server that knows its format and exports it under that name; such disks
    are not opened here.
    ``taps`` and ``streams``: by a vif's number, the descriptor of a tap device or of a stream of frames, each with its
    length before it (QEMU's "-netdev stream").
    ``agent``: the socket on which xend asks for the agent. ``late_disks``: no disk is there from the start.
    """

    nbd: Mapping[str, Path] = field(default_factory=dict)
    taps: Mapping[int, int] = field(default_factory=dict)
    streams: Mapping[int, int] = field(default_factory=dict)
    agent: int | None = None
    late_disks: bool = False

    @property
    def fds(self) -> list[int]:
        return [*self.taps.values(), *self.streams.values(), *([] if self.agent is None else [self.agent])]

    def disk(self, config: DiskConfig) -> Disk:
        """Open a disk. Raises Unsupported, NotFound or Unavailable when it can't be opened."""
        if (server := self.nbd.get(config.vdev)) is not None:
            return NbdDisk.at(server, config.vdev)
        if config.format is not DiskFormat.RAW:
            raise Unsupported(f"disk {config.vdev}: the hypervisor itself reads raw disks, not {config.format.value}")
        return RawDisk.open(Path(config.target), read_only=is_read_only(config))

    def link(self, number: int) -> Link:
        """What a vif's frames go to. Raises Unsupported if nothing was opened for it."""
        if (fd := self.taps.get(number)) is not None:
            return TapLink(fd)
        if (fd := self.streams.get(number)) is not None:
            return StreamLink(socket.socket(fileno=fd))
        raise Unsupported(f"vif {number}: there is neither a tap device nor a stream for it")


def is_read_only(disk: DiskConfig) -> bool:
    return disk.devtype is DiskType.CDROM or disk.access is DiskAccess.READ


class Devices:
    """All devices of one domain. For the main loop's thread."""

    def __init__(
        self,
        local: Local,
        domain: Domain,
        call_soon: Callable[[Callable[[], None]], None],
        gone: Callable[[str], None],
    ) -> None:
        """``gone`` is called with the id of each device that the guest has let go of, or that was taken away."""
        self._local = local
        self._domain = domain
        self._call_soon = call_soon
        self._gone = gone
        self._devices: dict[str, Device] = {}
        self._agent: Device | None = None

    @property
    def ids(self) -> list[str]:
        return list(self._devices)

    @property
    def held(self) -> list[str]:
        """Disks whose requests wait for another connection to their server."""
        disks = ((device, self._disk(device)) for device in self._devices)
        return [device for device, disk in disks if isinstance(disk, NbdDisk) and disk.held]

    def attach_disk(self, config: DiskConfig, disk: Disk) -> None:
        """Show the guest ``disk``, which belongs to this object from now on. Raises Conflict if there is such a one."""
        cdrom = config.devtype is DiskType.CDROM
        number = block.vdev_number(config.vdev)
        address = self._address("vbd", number)
        front, back = block.describe(number, mode="r" if is_read_only(config) else "w", cdrom=cdrom)
        introduce(self._local, address, frontend=front, backend={**back, "dev": config.vdev, "params": config.target})
        self._keep(config.vdev, block.attach(self._local, self._domain, number, disk, self._call_soon, cdrom=cdrom))

        self.limit_disk(config.vdev, config.rate, config.iops)

    def limit_disk(self, device: str, rate: int | None, iops: int | None) -> None:
        """Let a disk do no more than so many bytes and requests a second; None: no limit. Raises NotFound."""
        driver = self._find(device).driver
        if not isinstance(driver, block.Vbd):
            raise NotFound(f"there is no disk {device}")
        driver.limit.set(rate, iops)

    def limit_vif(self, number: int, rate: int | None) -> None:
        """Let the guest send no more than so many bytes a second; None: no limit. Raises NotFound."""
        driver = self._find(vif_device(number)).driver
        assert isinstance(driver, net.Vif)
        driver.limit(rate)

    def attach_vif(self, number: int, config: Vif, link: Link) -> None:
        """Show the guest an interface; as ``attach_disk``."""
        assert config.mac is not None, "xend gives each vif an address"
        address = self._address("vif", number)
        front, back = net.describe(number, config.mac, bridge=config.bridge, vifname=config.vifname)
        introduce(self._local, address, frontend=front, backend=back)
        device = net.attach(self._local, self._domain, number, [link], self._call_soon, rate=config.rate)
        self._keep(vif_device(number), device)

    def attach_agent(self, end: channel.HostEnd) -> None:
        """Show the guest the console that leads to ``end``. It is there until the domain ends."""
        front, back = channel.describe(agent.DEVID, PORT_NAME)
        introduce(self._local, self._address("console", agent.DEVID), frontend=front, backend=back)
        self._agent = channel.attach(self._local, self._domain, agent.DEVID, end)

    def check_free(self, device: str, kind: str, number: int) -> None:
        """Raises Conflict if a device of this id or number is there."""
        address = Address(self._domain.domid, kind, number)
        if device in self._devices or any(each.address == address for each in self._devices.values()):
            raise Conflict(f"there is a device {device} already")

    def detach(self, device: str, *, force: bool) -> None:
        """Ask the guest to let go of a device; with ``force`` take it away at once. Raises NotFound."""
        found = self._find(device)
        if force:
            found.take_away()
        else:
            found.request_close()

    def disk(self, device: str) -> Disk:
        """Raises NotFound if there is no such disk."""
        if (disk := self._disk(device)) is None:
            raise NotFound(f"there is no disk {device}")
        return disk

    def show_size(self, device: str) -> None:
        """Tell the guest what size a disk has now, if it still has it."""
        found = self._devices.get(device)
        if found is not None and isinstance(found.driver, block.Vbd):
            found.update(found.driver.geometry())

    def settle(self) -> None:
        """Wait until all that a guest which stands still has asked its disks for is done and on them. In any thread.

        Raises OSError.
        """
        for device in list(self._devices.values()):
            device.settle()

    def close(self) -> None:
        """Stop all of them: what the guest was told is written is on its disks afterwards."""
        for device in [*self._devices.values(), *([] if self._agent is None else [self._agent])]:
            device.destroy()
        self._devices.clear()

    def _address(self, kind: str, number: int) -> Address:
        return Address(self._domain.domid, kind, number)

    def _find(self, device: str) -> Device:
        if (found := self._devices.get(device)) is None:
            raise NotFound(f"there is no device {device}")
        return found

    def _disk(self, device: str) -> Disk | None:
        found = self._devices.get(device)
        return found.driver.disk if found is not None and isinstance(found.driver, block.Vbd) else None

    def _keep(self, name: str, device: Device) -> None:
        self._devices[name] = device

        def forget() -> None:
            del self._devices[name]
            self._gone(name)

        device.on_removed = forget

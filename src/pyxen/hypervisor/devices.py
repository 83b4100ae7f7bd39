"""A domain's disks and network interfaces: opened, written into xenstore, and served by their back ends."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pyxen.backend import block, net
from pyxen.backend.disk import Disk, RawDisk
from pyxen.backend.link import Link, StreamLink, TapLink
from pyxen.backend.nbd import NbdDisk
from pyxen.backend.xenbus import Address, Device, introduce
from pyxen.config.model import Disk as DiskConfig
from pyxen.config.model import DiskAccess, DiskFormat, DiskType, Vif
from pyxen.errors import Unsupported
from pyxen.hypervisor.domain import Domain
from pyxen.xenstore.local import Local


@dataclass(frozen=True, slots=True)
class Sources:
    """What the engine has opened for this process.

    ``nbd``: by a disk's vdev, the socket of a server that knows its format and exports it under that name; such disks
    are not opened here.
    ``taps`` and ``streams``: by a vif's number, the descriptor of a tap device or of a stream of frames, each with its
    length before it (QEMU's "-netdev stream").
    """

    nbd: Mapping[str, Path] = field(default_factory=dict)
    taps: Mapping[int, int] = field(default_factory=dict)
    streams: Mapping[int, int] = field(default_factory=dict)


class Devices:
    """All devices of one domain. For the main loop's thread."""

    def __init__(
        self, local: Local, domain: Domain, call_soon: Callable[[Callable[[], None]], None], sources: Sources
    ) -> None:
        self._local = local
        self._domain = domain
        self._call_soon = call_soon
        self._sources = sources
        self._devices: dict[Address, Device] = {}

    def attach_disk(self, config: DiskConfig) -> None:
        """Raises Unsupported, NotFound or Unavailable when the disk can't be opened."""
        cdrom = config.devtype is DiskType.CDROM
        read_only = cdrom or config.access is DiskAccess.READ
        disk = self._open(config, read_only=read_only)
        number = block.vdev_number(config.vdev)
        front, back = block.describe(number, mode="r" if read_only else "w", cdrom=cdrom)
        address = Address(self._domain.domid, "vbd", number)
        introduce(self._local, address, frontend=front, backend={**back, "dev": config.vdev, "params": config.target})
        self._keep(block.attach(self._local, self._domain, number, disk, self._call_soon, cdrom=cdrom))

    def attach_vif(self, number: int, config: Vif) -> None:
        """Raises Unsupported if nothing was opened for it."""
        links = [self._link(number)]
        assert config.mac is not None, "xend gives each vif an address"
        front, back = net.describe(number, config.mac, bridge=config.bridge, vifname=config.vifname)
        introduce(self._local, Address(self._domain.domid, "vif", number), frontend=front, backend=back)
        self._keep(net.attach(self._local, self._domain, number, links, self._call_soon, rate=config.rate))

    def settle(self) -> None:
        """Wait until all that a guest which stands still has asked its disks for is done and on them. In any thread.

        Raises OSError.
        """
        for device in list(self._devices.values()):
            device.settle()

    def close(self) -> None:
        """Stop all of them: what the guest was told is written is on its disks afterwards."""
        for device in list(self._devices.values()):
            device.destroy()
        self._devices.clear()

    def _open(self, config: DiskConfig, *, read_only: bool) -> Disk:
        if (server := self._sources.nbd.get(config.vdev)) is not None:
            return NbdDisk(server, config.vdev)
        if config.format is not DiskFormat.RAW:
            raise Unsupported(f"disk {config.vdev}: the hypervisor itself reads raw disks, not {config.format.value}")
        return RawDisk(Path(config.target), read_only=read_only)

    def _link(self, number: int) -> Link:
        if (fd := self._sources.taps.get(number)) is not None:
            return TapLink(fd)
        if (fd := self._sources.streams.get(number)) is not None:
            return StreamLink(socket.socket(fileno=fd))
        raise Unsupported(f"vif {number}: there is neither a tap device nor a stream for it")

    def _keep(self, device: Device) -> None:
        address = device.address
        self._devices[address] = device

        def forget() -> None:
            self._devices.pop(address, None)

        device.on_removed = forget

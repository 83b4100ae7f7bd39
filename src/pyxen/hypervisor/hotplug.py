"""Orders about devices that come and go while the guest runs: what they stand on comes as descriptors."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import msgspec

from pyxen.backend.block import vdev_number
from pyxen.backend.disk import Disk, RawDisk
from pyxen.backend.link import StreamLink, TapLink
from pyxen.backend.nbd import NbdDisk
from pyxen.config.model import Disk as DiskConfig
from pyxen.config.model import DiskFormat, Vif, vif_device
from pyxen.errors import Conflict, EngineError, InvalidRequest
from pyxen.hypervisor.control import Later
from pyxen.hypervisor.devices import Devices, is_read_only

_T = TypeVar("_T", DiskConfig, Vif)
_SECTOR: Final = 512


class Hotplug:
    """Carries them out, on the main loop's thread. ``check`` raises Conflict where nothing may change now."""

    def __init__(self, devices: Devices, check: Callable[[str], None]) -> None:
        self._devices = devices
        self._check = check
        self._coming: set[str] = set()

    def commands(self) -> Mapping[str, Callable[..., object]]:
        return {
            "devices": self.devices,
            "attach-disk": self.attach_disk,
            "attach-vif": self.attach_vif,
            "detach": self.detach,
            "hold-disk": self.hold_disk,
            "resize-disk": self.resize_disk,
            "limit-disk": self.limit_disk,
            "limit-vif": self.limit_vif,
        }

    def devices(self) -> dict[str, list[str]]:
        """The ids of all that are there, and those of disks that wait for a connection (``hold_disk``)."""
        return {"attached": self._devices.ids, "held": self._devices.held}

    def attach_disk(self, fds: list[int], disk: dict[str, Any]) -> Later:
        """The descriptor is the raw file's, or a connection to the server of a disk of another format."""
        config = _convert(disk, DiskConfig)
        self._check("attach a disk to")
        self._devices.check_free(config.vdev, "vbd", vdev_number(config.vdev))
        if config.vdev in self._coming:
            raise Conflict(f"a disk {config.vdev} is being attached already")
        fd = _take(fds)
        self._coming.add(config.vdev)
        made: list[Disk] = []

        def work() -> None:
            # In a thread: a server may keep us waiting.
            if config.format is DiskFormat.RAW:
                made.append(RawDisk(fd, read_only=is_read_only(config)))
            else:
                made.append(NbdDisk(_socket(fd), config.vdev))

        def done() -> None:
            self._coming.discard(config.vdev)
            for each in made:
                self._devices.attach_disk(config, each)

        return Later(work, done)

    def attach_vif(self, fds: list[int], number: int, vif: dict[str, Any]) -> None:
        """The descriptor is a tap's if the vif is on a bridge, else that of a stream of frames."""
        config = _convert(vif, Vif)
        self._check("attach a network interface to")
        self._devices.check_free(vif_device(number), "vif", number)
        fd = _take(fds)
        try:
            link = TapLink(fd) if config.bridge else StreamLink(_socket(fd))
        except OSError as error:
            raise EngineError(f"vif {number}: this is no network: {error.strerror}") from error
        self._devices.attach_vif(number, config, link)

    def detach(self, device: str, force: bool = False) -> None:
        """Ask the guest to let go of a device; with ``force`` take it away at once."""
        self._check("detach a device of")
        self._devices.detach(device, force=force)

    def limit_disk(self, device: str, rate: int | None = None, iops: int | None = None) -> None:
        """Bytes and requests a second; None: no limit."""
        self._devices.limit_disk(device, rate, iops)

    def limit_vif(self, number: int, rate: int | None = None) -> None:
        """Bytes a second that the guest sends; None: no limit."""
        self._devices.limit_vif(number, rate)

    def hold_disk(self, device: str) -> Later:
        """Let a served disk's requests wait, until ``resize_disk`` brings another connection to its server."""
        self._check("resize a disk of")
        disk = self._devices.disk(device)
        if not isinstance(disk, NbdDisk):
            raise InvalidRequest(f"disk {device} is not served")
        return Later(disk.hold, lambda: None)

    def resize_disk(self, device: str, size: int, fds: list[int] | None = None) -> Later:
        """Make a raw disk ``size`` bytes long, or go on with a served one that has become so; tell the guest."""
        self._check("resize a disk of")
        disk = self._devices.disk(device)
        if isinstance(disk, NbdDisk):
            connection = _socket(_take(fds or []))
            return Later(lambda: disk.go_on(connection), lambda: self._devices.show_size(device))
        assert isinstance(disk, RawDisk)
        if size % _SECTOR:
            raise InvalidRequest(f"a disk has whole sectors of {_SECTOR} bytes, {size} is no multiple of that")
        if size < disk.size:
            raise InvalidRequest(f"disk {device} has {disk.size} bytes, and can't be made smaller")
        return Later(lambda: disk.grow(size), lambda: self._devices.show_size(device))


def _convert(given: dict[str, Any], kind: type[_T]) -> _T:
    try:
        return msgspec.convert(given, kind)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"this describes no device: {error}") from error


def _take(fds: list[int]) -> int:
    """The one descriptor that came beside the order, which is now the caller's to close."""
    if len(fds) != 1:
        raise InvalidRequest(f"a device stands on one descriptor, not {len(fds)}")
    return fds.pop()


def _socket(fd: int) -> socket.socket:
    """The socket of a descriptor, which is closed if it is none. Raises OSError."""
    try:
        return socket.socket(fileno=fd)
    except OSError:
        os.close(fd)
        raise

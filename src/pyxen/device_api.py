"""What goes over HTTP about a domain's disks and network interfaces; see :mod:`pyxen.api`."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from pyxen.api import HostPath
from pyxen.config.model import Disk, Vif


class DiskDevice(Struct):
    """A disk of a domain. ``number`` is Xen's for the device: 51712 is xvda."""

    number: int
    state: str
    """``attached``, ``detaching``; empty: the domain doesn't run."""
    disk: Disk


class VifDevice(Struct):
    """A network interface of a domain."""

    number: int
    state: str
    vif: Vif


class DeviceList(Struct):
    domid: int | None
    name: str
    disks: list[DiskDevice]
    vifs: list[VifDevice]


class AttachDiskRequest(Struct, forbid_unknown_fields=True):
    disk: Disk


DeviceRef = Annotated[str, Meta(min_length=1, max_length=64)]


class DetachDiskRequest(Struct, forbid_unknown_fields=True):
    vdev: DeviceRef
    """``xvdb``, or its number."""
    force: bool = False
    """Take it away whatever the guest does with it. Only domains of the Xen engine can be treated so."""


class ChangeDiscRequest(Struct, forbid_unknown_fields=True):
    vdev: DeviceRef
    target: HostPath | None = None
    """The disc's image; None: leave the drive empty."""


class ResizeDiskRequest(Struct, forbid_unknown_fields=True):
    vdev: DeviceRef
    size_bytes: Annotated[int, Meta(ge=512, le=1 << 62)]


class LimitDiskRequest(Struct, forbid_unknown_fields=True):
    vdev: DeviceRef
    rate: Annotated[int, Meta(ge=0, le=10**12)] | None = None
    """The most that it reads and writes, in bytes a second. 0: no limit; None: as it is."""
    iops: Annotated[int, Meta(ge=0, le=10**9)] | None = None
    """The most requests a second. 0: no limit; None: as it is."""


class LimitVifRequest(Struct, forbid_unknown_fields=True):
    vif: DeviceRef
    """Its number, or its MAC."""
    rate: Annotated[int, Meta(ge=0, le=10**12)]
    """The most that the guest sends, in bytes a second. 0: no limit."""


class AttachVifRequest(Struct, forbid_unknown_fields=True):
    vif: Vif


class DetachVifRequest(Struct, forbid_unknown_fields=True):
    vif: DeviceRef
    """Its number, or its MAC."""
    force: bool = False
    """As in DetachDiskRequest."""

"""What goes over HTTP about the devices of domains, and those of the host that they may have; see :mod:`pyxen.api`."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from pyxen.api import HostPath
from pyxen.config.model import Disk, PciDevice, UsbDevice, Vif


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
    """Also ``waiting``: a clone's, which is not on its bridge before the guest has taken the address it has now."""
    vif: Vif


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


class PciAttached(Struct):
    """A PCI device of the host that a domain has."""

    slot: int | None
    """On the guest's bus; from 32 on, the root port of that number less 32. None: the domain doesn't run."""
    state: str
    device: PciDevice


class UsbAttached(Struct):
    """A USB device of a domain. ``number`` is what ``detach-usb`` knows it by."""

    number: int
    state: str
    device: UsbDevice


class DeviceList(Struct):
    """All devices that come and go."""

    domid: int | None
    name: str
    disks: list[DiskDevice]
    vifs: list[VifDevice]
    pci: list[PciAttached] = []
    usb: list[UsbAttached] = []


class HostPciDevice(Struct):
    """A device on the host's PCI buses."""

    address: str
    vendor: str
    device: str
    """Four hexadecimal digits each."""
    kind: str
    """What class of device it is, in words."""
    vendor_name: str
    device_name: str
    """Empty where the list of names (package pci.ids) is not there or doesn't have it."""
    driver: str | None
    group: int | None
    """The IOMMU group; its devices go to one domain together."""
    assignable: bool
    """It is bound to vfio-pci: domains may have it."""
    domain: str | None
    """The running domain that has it."""
    problem: str
    """Why it can't be made assignable; empty: it is, or can be."""


class HostPciDevices(Struct):
    devices: list[HostPciDevice]
    problem: str
    """Why none of them can be given away; empty: that goes by the device."""
    hint: str


class HostUsbDevice(Struct):
    """A device on the host's USB; hubs are left out."""

    hostbus: int
    hostaddr: int
    port: str
    """The kernel's name for where it is plugged in: ``1-2.4``."""
    vendor: str
    product: str
    """Four hexadecimal digits each."""
    name: str
    domain: str | None
    """The running domain that has it."""
    problem: str
    """Why it can't be given away; empty: it can."""


class HostUsbDevices(Struct):
    devices: list[HostUsbDevice]


class AttachPciRequest(Struct, forbid_unknown_fields=True):
    pci: PciDevice


class DetachPciRequest(Struct, forbid_unknown_fields=True):
    pci: DeviceRef
    """Its address on the host."""


class AttachUsbRequest(Struct, forbid_unknown_fields=True):
    usb: UsbDevice


class DetachUsbRequest(Struct, forbid_unknown_fields=True):
    usb: DeviceRef
    """Its number, or as a host's device ``BUS.ADDRESS`` or ``VENDOR:PRODUCT``."""

"""PCI devices of the host, and USB devices, for HVM domains that QEMU runs: given, taken away, listed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from pyxen import api, device_api
from pyxen.config.check import check
from pyxen.config.model import (
    DomainConfig,
    DomainType,
    PciDevice,
    UsbDevice,
    pci_device,
    usb_device,
    usb_numbers,
)
from pyxen.config.pci import full_address
from pyxen.engine.contract import UsbController
from pyxen.engine.passthrough import usb, vfio
from pyxen.errors import NotFound, ResourceExhausted, Unsupported
from pyxen.xend.devices import Devices
from pyxen.xend.prepare import check_sharing, settle_usb, usb_disks
from pyxen.xend.registry import Live
from pyxen.xend.store import Record

if TYPE_CHECKING:
    from pyxen.xend.life import Life

_PORTS = 15


class Passthrough:
    """Carries out what is asked of such devices."""

    def __init__(self, life: Life, devices: Devices) -> None:
        self._life = life
        self._devices = devices

    # The host's

    async def host_pci(self) -> device_api.HostPciDevices:
        """The host's PCI devices, and why none can be given away if that is so."""
        return await asyncio.to_thread(self._life.pci.list, list(self._life.registry.running_specs()))

    async def make_assignable(self, address: str) -> None:
        """Take a PCI device from its driver, so that domains may have it. Raises PyxenError with what is against it."""
        address = full_address(address)
        await self._life.pci.take(address)
        self._life.events.publish("pci-device-taken", address=address)

    async def give_back(self, address: str) -> None:
        """Let the host's driver have it again. Raises Conflict if a domain has it."""
        address = full_address(address)
        await self._life.pci.give_back(address, self._life.registry.running_specs())
        self._life.events.publish("pci-device-given-back", address=address)

    async def host_usb(self) -> device_api.HostUsbDevices:
        """The host's USB devices."""
        owners = usb.owners(self._life.registry.running_specs())
        found = await asyncio.to_thread(usb.devices, self._life.pci.tree)
        return device_api.HostUsbDevices(
            [
                device_api.HostUsbDevice(
                    each.bus,
                    each.address,
                    each.port,
                    each.vendor,
                    each.product,
                    each.label,
                    owners.get((each.bus, each.address)),
                    each.used,
                )
                for each in found
            ]
        )

    # Domains'

    async def attach_pci(self, ref: str, device: PciDevice) -> api.Domain:
        """Give a domain a PCI device of the host."""
        record = self._life.records.changeable(ref, "attach a PCI device to")
        async with self._life.registry.lock(record.uuid):
            live = self._life.records.present(record)
            _refuse_pvh(record, "PCI devices of the host")
            config = _with_pci(record.config, device)
            check(config)
            if live is None:
                await self._life.records.change(record, config=config)
            else:
                self._devices.refuse_stopped(record, live, "attach a PCI device to")
                await self._life.pci.seize([device])
                running = list(self._life.registry.running_specs())
                await asyncio.to_thread(vfio.check_free, self._life.pci.tree, record.name, [device], running)
                await self._devices.plug(record, live, device, _with_pci(live.spec.config, device), config)
            self._life.tell("domain-device-attached", record, device=pci_device(device.address))
        return self._devices.view(record)

    async def detach_pci(self, ref: str, address: str) -> api.Domain:
        """Have the guest let go of a PCI device; returns when it has. Raises EngineError if not."""
        record = self._life.records.changeable(ref, "detach a PCI device of")
        async with self._life.registry.lock(record.uuid):
            live = self._life.records.present(record)
            config, address = live.spec.config if live else record.config, full_address(address)
            if not any(each.address == address for each in config.pci):
                raise NotFound(
                    f"Cannot find device '{address}' in domain '{record.name}'",
                    hint=f"See what there is: xm pci-list {record.name}",
                )
        return await self._devices.detach(record, live, pci_device(address))

    async def attach_usb(self, ref: str, device: UsbDevice) -> api.Domain:
        """Give a domain a USB device, and the controller for it if it has none."""
        record = self._life.records.changeable(ref, "attach a USB device to")
        async with self._life.registry.lock(record.uuid):
            live, warnings = self._life.records.present(record), list[str]()
            _refuse_pvh(record, "USB")
            device = _numbered(record.name, live.spec.config if live else record.config, device)
            config = _with_usb(record.config, device)
            check(config)
            if live is None:
                await self._life.records.change(record, config=config)
            else:
                self._devices.refuse_stopped(record, live, "attach a USB device to")
                running = list(self._life.registry.running_specs())
                (settled,) = await asyncio.to_thread(
                    settle_usb, record.name, [device], self._life.pci.tree, running, warnings
                )
                await asyncio.to_thread(check_sharing, record.name, usb_disks([settled]), running)
                check(_with_usb(live.spec.config, settled))
                await self._have_controller(record, live)
                config, wanted = _with_usb(record.config, device), _with_usb(live.spec.config, settled)
                await self._devices.plug(record, live, settled, wanted, config)
            self._life.tell("domain-device-attached", record, device=usb_device(device.devid or 0))
        return self._devices.view(record, warnings)

    async def detach_usb(self, ref: str, which: str) -> api.Domain:
        """Unplug a USB device, by its number or by what it is."""
        record = self._life.records.changeable(ref, "detach a USB device of")
        async with self._life.registry.lock(record.uuid):
            live = self._life.records.present(record)
            number = _find_usb(record, live, which)
        return await self._devices.detach(record, live, usb_device(number))

    async def _have_controller(self, record: Record, live: Live) -> None:
        """Plug in a controller, which stays: a guest's drivers for it have come with it."""
        if live.spec.config.usb or live.spec.config.usbdev:
            return
        wanted = msgspec.structs.replace(live.spec.config, usb=True)
        config = msgspec.structs.replace(record.config, usb=True)
        await self._devices.plug(record, live, UsbController(), wanted, config)


def _refuse_pvh(record: Record, what: str) -> None:
    if record.config.type is not DomainType.HVM:
        raise Unsupported(
            f"'{record.name}' is a {record.config.type} domain, and these have no {what}",
            hint="type=hvm domains have, on QEMU.",
        )


def _with_pci(config: DomainConfig, device: PciDevice) -> DomainConfig:
    return msgspec.structs.replace(config, pci=(*config.pci, device))


def _with_usb(config: DomainConfig, device: UsbDevice) -> DomainConfig:
    return msgspec.structs.replace(config, usbdev=(*config.usbdev, device))


def _numbered(name: str, config: DomainConfig, device: UsbDevice) -> UsbDevice:
    """The device with a number that none has. Raises ResourceExhausted."""
    if device.devid is not None:
        return device
    taken = usb_numbers(config.usbdev)
    free = next((number for number in range(_PORTS) if number not in taken), None)
    if free is None:
        raise ResourceExhausted(
            f"all {_PORTS} ports of the USB controller of '{name}' are taken", hint=f"xm usb-detach {name} NUMBER"
        )
    return msgspec.structs.replace(device, devid=free)


def _find_usb(record: Record, live: Live | None, which: str) -> int:
    own, settled = record.config.usbdev, live.spec.config.usbdev if live else ()
    for devices in (own, settled):
        for number, device in zip(usb_numbers(devices), devices, strict=True):
            names = (str(number), f"{device.hostbus}.{device.hostaddr}", f"{device.vendor}:{device.product}")
            if which.removeprefix("host:").lower() in names:
                return number
    raise NotFound(
        f"Cannot find device '{which}' in domain '{record.name}'",
        hint=f"See what there is: xm usb-list {record.name}",
    )

"""Devices that come and go: of a running domain at once, of one that doesn't run at its start.

What is wanted is written before a device is plugged in, so that no file is given out twice: into the folder's
domain.json and into the record. A device is taken off both when its guest has let it go, whoever was waiting for that.
A starting xend asks the monitor what is plugged in, and what is not is taken off (RunningDomain.on_unplugged).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import msgspec

from pyxen import api, device_api
from pyxen.backend.block import vdev_number
from pyxen.config.check import check
from pyxen.config.model import (
    Disk,
    DiskAccess,
    DiskFormat,
    DiskType,
    DomainConfig,
    DomainType,
    Vif,
    device_pci,
    device_usb,
    device_vif,
    pci_device,
    usb_device,
    usb_numbers,
    vif_device,
    vif_numbers,
)
from pyxen.engine.contract import DomainSpec, Pluggable, joins_at_once
from pyxen.errors import Conflict, EngineError, InvalidRequest, NotFound, PyxenError
from pyxen.xend.finishing import to_the_end
from pyxen.xend.prepare import check_macs, check_sharing, complete, settle_disk
from pyxen.xend.registry import Live
from pyxen.xend.store import Phase, Record

if TYPE_CHECKING:
    from pyxen.xend.life import Life

_FORCE_HINT = " With --force the device goes at once."


class Devices:
    """Carries out what is asked of domains' devices."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self._records = life.records

    def list(self, ref: str) -> device_api.DeviceList:
        """What a domain has of all that can come and go."""
        record = self._life.registry.find(ref)
        live = self._life.registry.live.get(record.uuid)
        config = live.spec.config if live else record.config
        leaving = set(live.leaving) if live else set()

        def state(device: str) -> str:
            return "" if live is None else "detaching" if device in leaving else "attached"

        disks = [
            device_api.DiskDevice(device_number(config.type, disk.vdev), state(disk.vdev), disk) for disk in config.disk
        ]
        numbered = zip(vif_numbers(config.vif), config.vif, strict=True)

        def vif_state(number: int, vif: Vif) -> str:
            found = state(vif_device(number))
            waits = live is not None and bool(vif.bridge) and not joins_at_once(live.spec, vif)
            return "waiting" if found == "attached" and waits else found

        vifs = [device_api.VifDevice(number, vif_state(number, vif), vif) for number, vif in numbered]
        slots = live.spec.slots if live else {}
        pci = [
            device_api.PciAttached(slots.get(name := pci_device(each.address)), state(name), each)
            for each in config.pci
        ]
        usb = [
            device_api.UsbAttached(number, state(usb_device(number)), each)
            for number, each in zip(usb_numbers(config.usbdev), config.usbdev, strict=True)
        ]
        return device_api.DeviceList(record.domid, record.name, disks, vifs, pci, usb)

    async def attach_disk(self, ref: str, disk: Disk) -> api.Domain:
        """Give a domain a disk."""
        record = self._records.changeable(ref, "attach a disk to")
        async with self._life.registry.lock(record.uuid):
            live, warnings = self._records.present(record), list[str]()
            config = _with_disk(record.config, disk)
            check(config)
            if live is not None and not disk.target:
                raise Conflict(
                    f"an empty drive can't be attached to '{record.name}' while it runs",
                    hint="One that is in its description can be filled and emptied: xm cd-insert, xm cd-eject.",
                )
            settled = await asyncio.to_thread(settle_disk, disk, warnings)
            if live is None:
                await self._records.change(record, config=config)
            else:
                self.refuse_stopped(record, live, "attach a disk to")
                wanted = _with_disk(live.spec.config, settled)
                check(wanted)
                await asyncio.to_thread(
                    check_sharing, record.name, [settled], list(self._life.registry.running_specs())
                )
                await self.plug(record, live, settled, wanted, config)
            self._life.tell("domain-device-attached", record, device=disk.vdev)
        return self.view(record, warnings)

    async def detach_disk(self, ref: str, vdev: str, *, force: bool = False) -> api.Domain:
        """Have the guest let go of a disk, by its name or number; returns when it has. Raises EngineError if not.

        With ``force`` it is taken away, whatever the guest does with it. Raises Unsupported where that can't be done.
        """
        record = self._records.changeable(ref, "detach a disk of")
        async with self._life.registry.lock(record.uuid):
            live = self._records.present(record)
            disk = _find_disk(record, live, vdev)
            if live is not None:
                _own_disk(record, disk.vdev)
        return await self.detach(record, live, disk.vdev, force=force)

    async def change_disc(self, ref: str, vdev: str, target: str) -> api.Domain:
        """Put a disc (an image's path; none: empty) into a CD-ROM drive, in place of what is there."""
        record = self._records.changeable(ref, "change a disc of")
        async with self._life.registry.lock(record.uuid):
            live, warnings = self._records.present(record), list[str]()
            disk = _find_disk(record, live, vdev)
            if disk.devtype is not DiskType.CDROM:
                raise Conflict(f"{disk.vdev} of '{record.name}' is a disk, not a CD-ROM drive")
            own = _own_disk(record, disk.vdev)
            format = DiskFormat.AUTO if target else own.format
            wanted = msgspec.structs.replace(own, target=target, format=format)
            config = _with_disc(record.config, wanted)
            check(config)
            settled = await asyncio.to_thread(settle_disk, wanted, warnings)
            if live is None:
                await self._records.change(record, config=config)
            else:
                self.refuse_stopped(record, live, "change a disc of")
                others = [spec for spec in self._life.registry.running_specs() if spec.domid != live.spec.domid]
                await asyncio.to_thread(check_sharing, record.name, [settled], others)
                spec = _with_config(live.spec, _with_disc(live.spec.config, settled))
                await live.process.change_disc(settled, spec)
                await self._keep(live, spec)
                await self._records.change(record, config=config)
            self._life.tell("domain-disc-changed", record, device=disk.vdev, path=target)
        return self.view(record, warnings)

    async def resize_disk(self, ref: str, vdev: str, size: int) -> api.Domain:
        """Make a running domain's disk longer: ``size`` is in bytes."""
        record = self._records.changeable(ref, "resize a disk of")
        async with self._life.registry.lock(record.uuid):
            live = self._records.running(record)
            disk = _find_disk(record, live, vdev)
            self.refuse_stopped(record, live, "resize a disk of")
            if disk.devtype is DiskType.CDROM or disk.access is DiskAccess.READ:
                raise Conflict(f"{disk.vdev} of '{record.name}' is read-only")
            if size % 512:
                raise InvalidRequest(f"a disk has whole sectors of 512 bytes, {size} is no multiple of that")
            # The guest may wait for its disk meanwhile.
            await to_the_end(live.process.resize_disk(disk.vdev, size))
            self._life.tell("domain-disk-resized", record, device=disk.vdev, size_bytes=size)
        return self.view(record)

    async def limit_disk(self, ref: str, vdev: str, rate: int | None, iops: int | None) -> api.Domain:
        """Let a disk do no more than so many bytes and requests a second. 0: no limit; None: as it is."""
        record = self._records.changeable(ref, "limit a disk of")
        async with self._life.registry.lock(record.uuid):
            live = self._records.present(record)
            vdev = _find_disk(record, live, vdev).vdev

            def limited(config: DomainConfig) -> tuple[DomainConfig, Disk]:
                disk = next(each for each in config.disk if each.vdev == vdev)
                disk = msgspec.structs.replace(disk, rate=_limit(rate, disk.rate), iops=_limit(iops, disk.iops))
                return _with_disc(config, disk), disk

            # The root disk of an image is in no description: what it is told holds for this life.
            own = any(disk.vdev == vdev for disk in record.config.disk)
            await self._limit(record, live, vdev, limited(record.config)[0] if own else record.config, limited)
        return self.view(record)

    async def limit_vif(self, ref: str, which: str, rate: int) -> api.Domain:
        """Let a guest send no more than so many bytes a second over an interface. 0: no limit."""
        record = self._records.changeable(ref, "limit a network interface of")
        async with self._life.registry.lock(record.uuid):
            live = self._records.present(record)
            number = _find_vif(record, live, which)

            def limited(config: DomainConfig) -> tuple[DomainConfig, Vif]:
                place = vif_numbers(config.vif).index(number)
                vif = msgspec.structs.replace(config.vif[place], rate=rate or None)
                return msgspec.structs.replace(config, vif=(*config.vif[:place], vif, *config.vif[place + 1 :])), vif

            await self._limit(record, live, vif_device(number), limited(record.config)[0], limited)
        return self.view(record)

    async def attach_vif(self, ref: str, vif: Vif) -> api.Domain:
        """Give a domain a network interface."""
        record = self._records.changeable(ref, "attach a network interface to")
        async with self._life.registry.lock(record.uuid):
            live = self._records.present(record)
            config = complete(msgspec.structs.replace(record.config, vif=(*record.config.vif, vif)))
            check(config)
            if live is None:
                await self._records.change(record, config=config)
            else:
                self.refuse_stopped(record, live, "attach a network interface to")
                added = config.vif[-1]
                check_macs([added], self._life.registry.running_specs())
                wanted = msgspec.structs.replace(live.spec.config, vif=(*live.spec.config.vif, added))
                await self.plug(record, live, added, wanted, config)
            self._life.tell("domain-device-attached", record, device=vif_device(vif_numbers(config.vif)[-1]))
        return self.view(record)

    async def detach_vif(self, ref: str, which: str, *, force: bool = False) -> api.Domain:
        """Have the guest let go of a network interface, by its number or MAC; as ``detach_disk``."""
        record = self._records.changeable(ref, "detach a network interface of")
        async with self._life.registry.lock(record.uuid):
            live = self._records.present(record)
            number = _find_vif(record, live, which)
        return await self.detach(record, live, vif_device(number), force=force)

    # Parts

    async def plug(
        self, record: Record, live: Live, device: Pluggable, wanted: DomainConfig, config: DomainConfig
    ) -> None:
        """Plug ``device`` in, which ``wanted`` (of this life) and ``config`` (of the next ones) have."""
        engine = next(each for each in self._life.engines if each.name == record.engine)
        await asyncio.to_thread(engine.check, wanted)
        before, spec = live.spec, engine.lay_out(_with_config(live.spec, wanted))
        old = record.config
        await self._records.change(record, config=config)
        try:
            await self._keep(live, spec)
            await live.process.plug(device, spec)
        except BaseException:
            await self._records.change(record, config=old)
            await self._keep(live, before)
            raise

    async def _limit(
        self,
        record: Record,
        live: Live | None,
        device: str,
        config: DomainConfig,
        limited: Callable[[DomainConfig], tuple[DomainConfig, Disk | Vif]],
    ) -> None:
        """Hold ``device`` to what ``limited`` makes of a description; ``config`` is that of the next lives."""
        before = record.config
        if live is not None:
            self.refuse_stopped(record, live, "limit a device of")
        await self._records.change(record, config=config)
        if live is not None:
            try:
                wanted, changed = limited(live.spec.config)
                spec = _with_config(live.spec, wanted)
                await live.process.limit(changed, spec)
                await self._keep(live, spec)
            except BaseException:
                await self._records.change(record, config=before)
                raise
        self._life.tell("domain-device-limited", record, device=device)

    async def detach(self, record: Record, live: Live | None, device: str, *, force: bool = False) -> api.Domain:
        """Take a device off by its id: of a running domain, when its guest has let go. Raises EngineError if not."""
        name = _shown(device)
        async with self._life.registry.lock(record.uuid):
            if live is None:
                await self._records.change(record, config=_without(record.config, device))
                self._life.tell("domain-device-detached", record, device=device)
                return self.view(record)
            self.refuse_stopped(record, live, "detach a device of")
            await live.process.unplug(device, force=force)
            gone = live.leaving.setdefault(device, asyncio.get_running_loop().create_future())
        # Without the lock: the guest may take its time, and somebody may want it destroyed before.
        timeout = self._life.settings.detach_timeout
        await asyncio.wait([gone], timeout=timeout)
        if gone.cancelled():
            raise Conflict(f"'{record.name}' stopped before it had let go of {name}")
        if not gone.done():
            raise EngineError(
                f"'{record.name}' has not let go of {name} within {timeout:g} s",
                hint="It has been asked: when it does so later, the device goes then. A paused guest can't, nor one "
                f"that is still booting.{_FORCE_HINT if record.engine == 'xen' else ''}",
            )
        return self.view(record)

    async def _keep(self, live: Live, spec: DomainSpec) -> None:
        live.spec = spec
        await asyncio.to_thread(self._life.write_spec, spec)

    def refuse_stopped(self, record: Record, live: Live, what: str) -> None:
        """Raises Conflict if the guest has stopped."""
        if record.phase is not Phase.RUNNING or live.process.stopped is not None:
            raise Conflict(f"cannot {what} '{record.name}': its guest has stopped")

    def view(self, record: Record, warnings: Iterable[str] = ()) -> api.Domain:
        """The domain as it is now, with these warnings besides its own."""
        view = self._life.registry.view(record)
        view.warnings = list(dict.fromkeys([*warnings, *view.warnings]))
        return view


async def unplugged(life: Life, uuid: str, domid: int, device: str) -> None:
    """A domain's guest has let go of a device: take it off what is written of the domain."""
    async with life.registry.lock(uuid):
        record, live = life.registry.records.get(uuid), life.registry.live.get(uuid)
        if record is None or live is None or live.spec.domid != domid:
            return
        slots = {key: slot for key, slot in live.spec.slots.items() if key != device}
        live.spec = msgspec.structs.replace(live.spec, config=_without(live.spec.config, device), slots=slots)
        try:
            await life.records.change(record, config=_without(record.config, device))
            await asyncio.to_thread(life.write_spec, live.spec)
        except PyxenError as error:  # a later xend finds out by itself
            life.log.error("detached device not written", name=record.name, device=device, error=str(error))
        if (gone := live.leaving.pop(device, None)) is not None and not gone.done():
            gone.set_result(None)
        life.tell("domain-device-detached", record, device=device)


def _shown(device: str) -> str:
    if (number := device_vif(device)) is not None:
        return f"network interface {number}"
    if (number := device_usb(device)) is not None:
        return f"USB device {number}"
    address = device_pci(device)
    return f"disk {device}" if address is None else f"PCI device {address}"


def _limit(wanted: int | None, now: int | None) -> int | None:
    """0: no limit; None: as it is."""
    return now if wanted is None else wanted or None


def _with_config(spec: DomainSpec, config: DomainConfig) -> DomainSpec:
    return msgspec.structs.replace(spec, config=config)


def _with_disk(config: DomainConfig, disk: Disk) -> DomainConfig:
    return msgspec.structs.replace(config, disk=(*config.disk, disk))


def _with_disc(config: DomainConfig, drive: Disk) -> DomainConfig:
    """The description with ``drive`` in place of what it was."""
    disks = tuple(drive if each.vdev == drive.vdev else each for each in config.disk)
    return msgspec.structs.replace(config, disk=disks)


def device_number(kind: DomainType, vdev: str) -> int:
    """Xen's number of a virtual device; the hd and sd of an HVM domain are the ones that Linux once had."""
    index = ord(vdev[2]) - ord("a")
    if kind is DomainType.HVM and vdev.startswith("hd"):
        return (3, 22)[index // 2 % 2] << 8 | index % 2 << 6
    if kind is DomainType.HVM and vdev.startswith("sd") and len(vdev) == 3:
        return 8 << 8 | index % 16 << 4
    return vdev_number(vdev)


def _without(config: DomainConfig, device: str) -> DomainConfig:
    """The description without a device; those that stay keep their numbers."""
    if (address := device_pci(device)) is not None:
        return msgspec.structs.replace(config, pci=tuple(each for each in config.pci if each.address != address))
    if device == "usb":
        return msgspec.structs.replace(config, usb=False)
    if (gone := device_usb(device)) is not None:
        numbered = zip(usb_numbers(config.usbdev), config.usbdev, strict=True)
        stay = tuple(msgspec.structs.replace(usb, devid=number) for number, usb in numbered if number != gone)
        return msgspec.structs.replace(config, usb=True, usbdev=stay)  # its controller stays
    if (gone := device_vif(device)) is None:
        return msgspec.structs.replace(config, disk=tuple(disk for disk in config.disk if disk.vdev != device))
    left = [(n, vif) for n, vif in zip(vif_numbers(config.vif), config.vif, strict=True) if n != gone]
    vifs = tuple(vif for _, vif in left)
    if vif_numbers(vifs) != [number for number, _ in left]:
        vifs = tuple(msgspec.structs.replace(vif, devid=number) for number, vif in left)
    return msgspec.structs.replace(config, vif=vifs)


def _find_disk(record: Record, live: Live | None, ref: str) -> Disk:
    config = live.spec.config if live else record.config
    for disk in config.disk:
        if ref in (disk.vdev, str(device_number(config.type, disk.vdev)), f"/dev/{disk.vdev}"):
            return disk
    raise NotFound(
        f"Cannot find device '{ref}' in domain '{record.name}'",
        hint=f"See what there is: xm block-list {record.name}",
    )


def _own_disk(record: Record, vdev: str) -> Disk:
    """The disk as the description has it. Raises Conflict for one that is not its own to change."""
    found = next((disk for disk in record.config.disk if disk.vdev == vdev), None)
    if found is None:
        raise Conflict(f"{vdev} of '{record.name}' is the root disk of its image, without which it can't run")
    return found


def _find_vif(record: Record, live: Live | None, which: str) -> int:
    config = live.spec.config if live else record.config
    mac = which.lower().replace("-", ":")
    for number, vif in zip(vif_numbers(config.vif), config.vif, strict=True):
        if which == str(number) or mac == vif.mac:
            return number
    raise NotFound(
        f"Cannot find device '{which}' in domain '{record.name}'",
        hint=f"See what there is: xm network-list {record.name}",
    )

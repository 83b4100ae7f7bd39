"""A domain that QEMU runs."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import msgspec

from pyxen.api import Trigger
from pyxen.config.model import (
    Disk,
    DomainType,
    PciDevice,
    UsbDevice,
    Vif,
    device_pci,
    device_usb,
    pci_device,
    usb_device,
    usb_numbers,
    vif_device,
    vif_number,
    vif_numbers,
)
from pyxen.engine import cgroup
from pyxen.engine.contract import DomainSpec, Limits, Moving, Pluggable, StartedInfo, UsbController
from pyxen.engine.domain import ProcessDomain, no_drive, save_info
from pyxen.engine.inotify import Inotify
from pyxen.engine.passthrough import vfio
from pyxen.engine.passthrough.tree import HostTree
from pyxen.engine.process import end_all
from pyxen.engine.qemu import copying, drives, hotplug, passthrough
from pyxen.engine.qemu.argv import CONSOLE_ID, EVENTS_INPUT, VCPU_ID, vcpu_device
from pyxen.engine.qemu.networks import limit_network
from pyxen.engine.qemu.qmp import Session, execute, session
from pyxen.engine.qemu.slots import USB, drive_bus, has_virtio_console
from pyxen.errors import Conflict, EngineError, PyxenError, Unsupported

_LOOK_S = 5.0
_MOVE_LOOK_S = 0.2
_PLUG_S = 5.0
_NO_LIMIT = 1 << 50
_HVC_SYSRQ = b"\x0f"  # Ctrl-O, Linux' drivers/tty/hvc/hvc_console.c
_NO_SUCH_TRIGGER = {
    Trigger.INIT: "QEMU sends no INIT from outside",
    Trigger.SLEEP: "QEMU's machines have no sleep button",
}


class QemuDomain(ProcessDomain):
    """Speaks to its QEMU by QMP, one connection for each order."""

    tree = HostTree()

    def __init__(
        self, spec: DomainSpec, directory: Path, pid: int | None, inotify: Inotify, info: StartedInfo | None = None
    ) -> None:
        self._plugged = set(range(spec.config.vcpus))
        self._wanted = 0
        """How many this xend has been asked for; 0: none yet."""
        self._replugging: asyncio.Task[None] | None = None
        super().__init__(spec, directory, pid, inotify, info)

    @property
    def online(self) -> Collection[int]:
        return self._plugged

    async def learn_vcpus(self) -> None:
        """See which VCPUs there are: an earlier xend may have changed that. One that can't be asked has those it began
        with.
        """
        if self.spec.most_vcpus == 1 or not self.alive:
            return
        with contextlib.suppress(PyxenError):
            slots = await execute(self.directory, "query-hotpluggable-cpus", timeout_s=_LOOK_S)
            self._plugged = {slot["props"]["core-id"] for slot in slots if "qom-path" in slot}

    async def learn_devices(self) -> None:
        """See which devices of the spec there are: one may have been about to come or go when an earlier xend died."""
        if not self.alive:
            return
        with contextlib.suppress(PyxenError):
            async with session(self.directory, timeout_s=_LOOK_S) as monitor:
                there = await hotplug.plugged(monitor)
                for device in self._missing(there):
                    await hotplug.free(monitor, device)
                    self._has_left(device)

    def _missing(self, there: Collection[str]) -> list[str]:
        config = self.spec.config
        wanted = [disk.vdev for disk in config.disk] + [vif_device(number) for number in vif_numbers(config.vif)]
        wanted += [USB, *(pci_device(each.address) for each in config.pci)]
        wanted = [device for device in wanted if device in self.spec.slots]
        wanted += map(usb_device, usb_numbers(config.usbdev))
        return [device for device in wanted if device not in there]

    async def plug(self, device: Pluggable, spec: DomainSpec) -> None:
        self._refuse_stopped("plug a device into")
        if (name := _slotted(device, spec)) is not None:
            hotplug.check_pluggable(spec, name)
        async with self._session() as monitor:
            match device:
                case Disk():
                    await hotplug.add_disk(monitor, device, spec)
                case Vif():
                    number = vif_number(spec.config.vif, device)
                    await hotplug.add_card(monitor, number, device, spec, self.info)
                    save_info(self.directory, self.info)
                case UsbController():
                    await passthrough.add_controller(monitor, spec)
                case UsbDevice():
                    number = usb_numbers(spec.config.usbdev)[spec.config.usbdev.index(device)]
                    await passthrough.add_usb(monitor, number, device, self.tree)
                case PciDevice():
                    await self._add_pci(monitor, device, spec)
        self.spec = spec

    async def _add_pci(self, monitor: Session, device: PciDevice, spec: DomainSpec) -> None:
        try:
            await asyncio.to_thread(vfio.allow_locking, spec, self.pid)
            await asyncio.to_thread(vfio.open_to, self.tree, [device], spec.uid)
            await passthrough.add_pci(monitor, device, spec)
        except BaseException:
            vfio.close_again(self.tree, [device], kept=self.spec.config.pci)
            raise

    async def unplug(self, device: str, *, force: bool = False) -> None:
        self._refuse_stopped("unplug a device of")
        if force:
            raise Unsupported(
                f"QEMU can't take a device away from '{self.spec.config.name}' against its guest's will",
                hint=f"Without --force the guest is asked; xm destroy {self.spec.config.name} asks nobody.",
            )
        if device_usb(device) is None:
            hotplug.check_pluggable(self.spec, device)
        async with self._session() as monitor:
            await hotplug.remove(monitor, device)

    async def change_disc(self, disk: Disk, spec: DomainSpec) -> None:
        self._refuse_stopped("change a disc of")
        if drive_bus(spec.config, disk) == "virtio":
            raise no_drive(disk, spec)
        async with self._session() as monitor:
            await hotplug.change_disc(monitor, disk)
        self.spec = spec

    async def limit(self, device: Disk | Vif, spec: DomainSpec) -> None:
        self._refuse_stopped("limit a device of")
        if isinstance(device, Disk):
            async with self._session() as monitor:
                await drives.limit(monitor, device, drive_bus(spec.config, device))
        else:
            number = vif_number(spec.config.vif, device)
            await asyncio.to_thread(limit_network, spec, number, device)
        self.spec = spec

    async def limit_disks(self) -> None:
        """Hold those disks to their rates that have some, at the start."""
        limited = [disk for disk in self.spec.config.disk if disk.rate or disk.iops]
        if limited:
            async with self._session() as monitor:
                for disk in limited:
                    await drives.limit(monitor, disk, drive_bus(self.spec.config, disk))

    async def resize_disk(self, vdev: str, size: int) -> None:
        self._refuse_stopped("resize a disk of")
        async with self._session() as monitor:
            await drives.resize(monitor, vdev, size)

    async def pause(self) -> None:
        await self._order("pause", "stop")
        await self.wait_paused(True)

    async def unpause(self) -> None:
        await self._order("unpause", "cont")
        await self.wait_paused(False)

    async def become(self, spec: DomainSpec, *, paused: bool) -> None:
        self.spec = spec
        if paused:
            return
        # By the monitor that is always open: a connection would take longer than the order. What QEMU has to say
        # against it comes by the events, too.
        command = msgspec.json.encode({"execute": "cont", "id": "cont"})
        self._write(EVENTS_INPUT, command, "wake")
        await self.wait_paused(False)
        self._check_alive()

    async def suspend(self) -> None:
        raise Unsupported(
            f"a guest of QEMU can't be asked to suspend itself, as '{self.spec.config.name}' is",
            hint=f"xm pause {self.spec.config.name} stops its VCPUs without its help.",
        )

    async def resume(self) -> None:
        raise Conflict(f"'{self.spec.config.name}' is not suspended")

    async def request_shutdown(self, reason: str) -> None:
        # The power button is all there is; xend remembers what was meant by it.
        await self._order("shut down", "system_powerdown")

    async def set_vcpus(self, count: int) -> None:
        surplus = sorted((number for number in self._plugged if number >= count), reverse=True)
        if surplus and self.vcpus_stay:
            raise Unsupported(
                f"QEMU can't take a VCPU away from '{self.spec.config.name}' without KVM",
                hint=f"The guest can: echo 0 > /sys/devices/system/cpu/cpu{surplus[0]}/online",
            )
        self._wanted = count
        await self._plug_missing()
        for number in surplus:
            await self._unplug(number)

    @property
    def vcpus_stay(self) -> bool:
        # The guest lets go, QEMU frees the VCPU, and TCG goes on using it: the next change of anything in the machine
        # corrupts QEMU's memory (7.2), and with one thread for all VCPUs it aborts at once.
        return self.info.accelerator == "tcg"

    async def set_memory(self, mib: int) -> None:
        await self._order("change the memory of", "balloon", {"value": mib << 20})

    async def set_max_memory(self, mib: int) -> None:
        """Nothing: QEMU's balloon has no limit of its own, so xend's is all there is."""

    async def sysrq(self, key: str) -> None:
        what = "press SysRq in"
        if has_virtio_console(self.spec):
            self._refuse_stopped(what)
            self._type(_HVC_SYSRQ + key.encode())
        elif self.spec.config.type is DomainType.PVH or (self.spec.kernel and self.spec.config.serial != "none"):
            # On a serial console it is a break, and the key typed after it.
            await self._order(what, "chardev-send-break", {"id": CONSOLE_ID})
            self._type(key.encode())
        elif key.isascii() and (key.isdigit() or key.islower()):
            keys = [{"type": "qcode", "data": code} for code in ("alt", "sysrq", key)]
            await self._order(what, "send-key", {"keys": keys})
        else:
            raise Unsupported(f"'{key}' can't be pressed with SysRq on the keyboard of an hvm domain")

    async def trigger(self, trigger: Trigger, vcpu: int | None) -> None:
        what = f"trigger {trigger} in"
        match trigger:
            case Trigger.NMI if vcpu is None:
                await self._order(what, "inject-nmi")
            case Trigger.NMI:
                raise Unsupported("QEMU sends an NMI to all VCPUs, not to one", hint="Leave the VCPU out.")
            case Trigger.RESET:
                await self._order(what, "system_reset")
            case Trigger.POWER:
                await self._order(what, "system_powerdown")
            case Trigger.S3RESUME if self.spec.config.type is DomainType.HVM:
                await self._order(what, "system_wakeup")
            case _:
                why = _NO_SUCH_TRIGGER.get(trigger, "a pvh domain can't sleep in S3")
                raise Unsupported(f"cannot trigger {trigger} in '{self.spec.config.name}': {why}")

    async def destroy(self) -> None:
        # SIGTERM rather than SIGKILL: QEMU then writes back what it still holds of the disks.
        await super().destroy()
        if self.spec.tpm is not None:
            await asyncio.to_thread(end_all, self.directory)
        cgroup.remove(self.spec.uuid)

    async def dump_core(self, file: int, *, live: bool = False) -> None:
        if live and not self.paused and self.stopped is None:
            raise Unsupported("QEMU pauses a guest while it dumps its core", hint="Leave --live out.")
        await self._execute("dump-guest-memory", {"paging": False, "protocol": "fd:core"}, fd=("core", file))

    async def screendump(self, file: int) -> None:
        if self.spec.config.type is DomainType.PVH or self.spec.config.vga == "none":
            return await super().screendump(file)
        async with self._session() as monitor:
            opened = await monitor.execute("add-fd", {"opaque": "screen"}, fd=file)
            try:
                name = f"/dev/fdset/{opened['fdset-id']}"
                await monitor.execute("screendump", {"filename": name, "format": "png"})
            finally:
                await monitor.execute("remove-fd", {"fdset-id": opened["fdset-id"]})

    async def machine(self) -> str:
        kind: str = await self._execute("qom-get", {"path": "/machine", "property": "type"})
        return kind.removesuffix("-machine")

    async def save_state(self, stream: int, *, shared: bool = False) -> None:
        """``shared``: without what is in a memory file that others may map."""
        self._refuse_stopped("save the state of")
        # Unlimited: the guest stands still meanwhile, and QEMU keeps to 128 MiB a second unless told otherwise.
        await self._send(stream, {"max-bandwidth": _NO_LIMIT}, "save", shared=shared)

    async def send_live(
        self,
        stream: int,
        limits: Limits,
        progress: Callable[[Moving], None],
        copied: Callable[[], None] | None = None,
    ) -> None:
        self._refuse_stopped("migrate")
        parameters = {"max-bandwidth": limits.bandwidth or _NO_LIMIT, "downtime-limit": limits.downtime_ms}
        await self._send(stream, parameters, "migrate", progress, converge=limits.converge, copied=copied)

    async def copy_disk(self, vdev: str, bandwidth: int | None) -> None:
        self._refuse_stopped("copy a disk of")
        await copying.begin(self.directory, vdev, bandwidth)

    async def copies(self) -> tuple[int, int, bool]:
        return await copying.progress(self.directory)

    async def abandon_copies(self) -> None:
        async with session(self.directory) as monitor:
            # It may stand still, and wait for a word that an earlier xend would have said.
            await monitor.execute("migrate_cancel")
        await copying.abandon(self.directory)

    async def _send(
        self,
        stream: int,
        parameters: Mapping[str, object],
        verb: str,
        progress: Callable[[Moving], None] | None = None,
        *,
        converge: bool = False,
        shared: bool = False,
        copied: Callable[[], None] | None = None,
    ) -> None:
        async with session(self.directory, timeout_s=None) as monitor:
            await monitor.execute("migrate-set-parameters", parameters)
            waits = copied is not None  # for our word, when the guest stands still
            wanted = {"events": True, "auto-converge": converge, "pause-before-switchover": waits}
            await _set_capabilities(monitor, {**wanted, **_ignoring(shared)})
            await monitor.execute("getfd", {"fdname": "state"}, fd=stream)
            await monitor.execute("migrate", {"uri": "fd:state"})
            try:
                await self._moved(monitor, verb, progress, copied)
            except BaseException:
                with contextlib.suppress(PyxenError):
                    await monitor.execute("migrate_cancel")
                raise

    async def load_state(self, stream: int, *, paused: bool, late_disks: bool) -> None:
        """Take the guest's state from ``stream``; then let it go on unless ``paused``.

        Raises EngineError; then nothing of the domain is left.
        """
        try:
            async with session(self.directory, timeout_s=None) as monitor:
                await _set_capabilities(monitor, {"events": True, "late-block-activate": late_disks})
                await monitor.execute("getfd", {"fdname": "state"}, fd=stream)
                await monitor.execute("migrate-incoming", {"uri": "fd:state"})
                await self._moved(monitor, "restore")
            if not paused:
                await self.unpause()
        except BaseException as error:
            words = self._words()
            await self.destroy()
            self.close()
            if isinstance(error, PyxenError) and words:
                raise EngineError(f"QEMU can't restore '{self.spec.config.name}': {words}") from error
            raise

    async def _moved(
        self,
        monitor: Session,
        verb: str,
        progress: Callable[[Moving], None] | None = None,
        copied: Callable[[], None] | None = None,
    ) -> None:
        """Wait for the end of a migration; its events say when to look."""
        while True:
            found = await monitor.execute("query-migrate")
            if progress is not None and (ram := found.get("ram")) is not None:
                stopped_s = found.get("downtime", 0) / 1000
                progress(Moving(ram["transferred"], ram["remaining"], ram["dirty-sync-count"], stopped_s))
            match found.get("status"):
                case "completed":
                    return
                case "pre-switchover" if copied is not None:
                    await copying.finish(monitor)
                    copied()
                    copied = None
                    await monitor.execute("migrate-continue", {"state": "pre-switchover"})
                case "failed" | "cancelled":
                    raise EngineError(
                        f"QEMU can't {verb} '{self.spec.config.name}': {found.get('error-desc', 'it does not say why')}"
                    )
            await monitor.event("MIGRATION", timeout_s=_MOVE_LOOK_S)

    def close(self) -> None:
        if self._replugging is not None:
            self._replugging.cancel()
        super().close()

    def _look(self) -> None:
        super()._look()
        for device in self._events.fate.unplugged:
            number = device.removeprefix(VCPU_ID)
            if number != device and number.isdigit():
                self._plugged.discard(int(number))
            elif not self._history:
                self._free_soon(device)
        self._events.fate.unplugged.clear()
        missing = set(range(self._wanted)) - self._plugged
        if missing and self.stopped is None and (self._replugging is None or self._replugging.done()):
            # More were asked for again before the guest had let go of these.
            self._replugging = asyncio.create_task(self._replug())

    async def _free(self, device: str) -> None:
        with contextlib.suppress(PyxenError):
            async with session(self.directory) as monitor:
                await hotplug.free(monitor, device)
        if (address := device_pci(device)) is not None:
            others = tuple(each for each in self.spec.config.pci if each.address != address)
            vfio.close_again(self.tree, [PciDevice(address)], kept=others)
            config = msgspec.structs.replace(self.spec.config, pci=others)
            self.spec = msgspec.structs.replace(self.spec, config=config)
        await super()._free(device)

    async def _replug(self) -> None:
        with contextlib.suppress(PyxenError):
            await self._plug_missing()

    async def _plug_missing(self) -> None:
        missing = [number for number in range(self._wanted) if number not in self._plugged]
        if not missing:
            return
        self._refuse_stopped("plug a VCPU into")
        try:
            # A guest that is busy on all VCPUs leaves QEMU itself little time, without KVM.
            async with self._session(timeout_s=30.0 + _PLUG_S * len(missing)) as monitor:
                for number in missing:
                    await monitor.execute("device_add", vcpu_device(number, self.info.accelerator))
                    self._plugged.add(number)
        finally:
            if self.alive:
                await self.place(self.placement)

    async def _unplug(self, number: int) -> None:
        try:
            await self._order("unplug a VCPU of", "device_del", {"id": f"{VCPU_ID}{number}"})
        except EngineError as error:
            # The guest has been asked before, and has not answered yet.
            if "already in the process of unplug" not in error.message:
                raise

    def _type(self, data: bytes) -> None:
        self._write("console.in", data, "type into")

    def _write(self, fifo: str, data: bytes, what: str) -> None:
        try:
            fd = os.open(self.directory / fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                os.write(fd, data)
            finally:
                os.close(fd)
        except OSError as error:
            raise EngineError(f"cannot {what} '{self.spec.config.name}': {error.strerror}") from error

    async def _order(self, what: str, command: str, arguments: Mapping[str, object] | None = None) -> None:
        """A command that only makes sense while the guest lives."""
        self._refuse_stopped(what)
        await self._execute(command, arguments)

    def _refuse_stopped(self, what: str) -> None:
        if self.stopped is not None:
            raise Conflict(f"cannot {what} '{self.spec.config.name}': its guest has stopped")

    @contextlib.asynccontextmanager
    async def _session(self, *, timeout_s: float = 30.0) -> AsyncIterator[Session]:
        """Several commands, with what goes wrong in the domain's name."""
        try:
            async with session(self.directory, timeout_s=timeout_s) as monitor:
                yield monitor
        except PyxenError as error:
            raise self._named(error) from error

    def _named(self, error: PyxenError) -> PyxenError:
        if not self.alive:
            return Conflict(f"'{self.spec.config.name}' is gone")
        return type(error)(f"'{self.spec.config.name}': {error.message}", hint=error.hint)

    async def _execute(
        self, command: str, arguments: Mapping[str, object] | None = None, *, fd: tuple[str, int] | None = None
    ) -> Any:
        try:
            # A core of many GiB takes its time.
            return await execute(self.directory, command, arguments, fd=fd, timeout_s=30.0 if fd is None else None)
        except PyxenError as error:
            raise self._named(error) from error


async def _set_capabilities(monitor: Session, wanted: Mapping[str, bool]) -> None:
    """Switch a migration's capabilities on and off; they stay so for the next one."""
    capabilities = [{"capability": name, "state": state} for name, state in wanted.items()]
    await monitor.execute("migrate-set-capabilities", {"capabilities": capabilities})


def _ignoring(shared: bool) -> dict[str, bool]:
    """The capability that leaves memory in a file which can be shared out of the stream, where that is wanted."""
    return {"x-ignore-shared": True} if shared else {}


def _slotted(device: Pluggable, spec: DomainSpec) -> str | None:
    """The id of a device that has a slot on the PCI bus."""
    match device:
        case Disk():
            return device.vdev
        case Vif():
            return vif_device(vif_number(spec.config.vif, device))
        case UsbController():
            return USB
        case PciDevice():
            return pci_device(device.address)
        case UsbDevice():
            return None

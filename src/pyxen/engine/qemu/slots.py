"""Where each of a domain's PCI devices lies on its bus.

A guest's state can only be read by a machine with the same devices at the same places. So each device is told its slot,
and keeps it while others come and go: a DomainSpec's ``slots`` are what has been given out.

Into the bus of an express machine (q35) nothing can be plugged while it runs, but into root ports on it. So it has
``PORTS``, eight to a slot, one function each, and a slot from ``FIRST_PORT`` on is the port of that number.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from pyxen.config.model import Disk, DiskType, DomainConfig, DomainType, pci_device, vif_device, vif_numbers
from pyxen.engine.contract import DomainSpec
from pyxen.errors import Conflict, ResourceExhausted

VGA_MODELS = {"stdvga": "VGA", "cirrus": "cirrus-vga", "qxl": "qxl-vga"}
CONSOLE, SATA, BALLOON, RANDOM, AGENTS, DISPLAY = "console", "sata", "balloon", "rng", "agents", "display"
USB = "usb"
"""Devices that have no id of their own in a description."""
PORT_GROUPS = ("ports0", "ports1")
"""Devices, too: what lies in a slot for each eight root ports."""
FUNCTIONS = 8
FIRST_PORT = 32
PORTS = range(FIRST_PORT, FIRST_PORT + FUNCTIONS * len(PORT_GROUPS))
_FREE = {"pci.0": range(2, 32), "pcie.0": range(1, 29)}
"""What the machines' own devices leave: host bridge and PIIX3 (pc); host bridge, USB controllers and ICH9 (q35)."""


def share_device(tag: str) -> str:
    """The id of the device by which a guest mounts a folder."""
    return f"p9-{tag}"


def bus(config: DomainConfig) -> str:
    """The name of the bus that the devices are on."""
    express = config.type is DomainType.HVM and config.hdtype == "ahci"
    return "pcie.0" if express else "pci.0"


def drive_bus(config: DomainConfig, disk: Disk) -> str:
    """``virtio`` (a PCI device for each), ``ide`` or ``sata``."""
    prefix = disk.vdev[:2]
    if config.type is DomainType.PVH or (prefix not in ("hd", "sd") and disk.devtype is DiskType.DISK):
        return "virtio"
    return "ide" if prefix == "hd" else "sata"


def letter_index(vdev: str) -> int:
    """0 for xvda, 25 for hdz, 26 for sdaa; a partition's number is of no account."""
    letters = vdev.rstrip("0123456789").removeprefix("x").removeprefix("vd").removeprefix("sd").removeprefix("hd")
    index = 0
    for letter in letters:
        index = index * 26 + ord(letter) - ord("a") + 1
    return index - 1


def has_virtio_console(spec: DomainSpec) -> bool:
    """Is the console a virtio one, in place of a serial port?"""
    return spec.config.type is DomainType.PVH and "console=hvc0" in spec.cmdline.split()


def laid_out(spec: DomainSpec) -> DomainSpec:
    """The same with a slot for each of its devices: its own where it has one, else the first that is free.

    Raises ResourceExhausted if there are more devices than slots, Conflict if one that must be in a certain slot can't.
    """
    wanted = _devices(spec)
    slots = {device: slot for device, slot in spec.slots.items() if device in wanted}
    _settle_asked(spec, slots)
    taken = set(slots.values())
    on_bus = (slot for slot in _FREE[bus(spec.config)] if slot not in taken)
    ports = (slot for slot in PORTS if PORT_GROUPS[0] in wanted and slot not in taken)
    # What comes while the domain runs must be in a port, where there are such.
    only_ports = PORT_GROUPS[0] in spec.slots
    for_ports = set(wanted) if only_ports else _pluggable(spec)
    for device in wanted:
        if device in slots:
            continue
        slot = next(ports, None) if device in for_ports else None
        if slot is None and not only_ports:
            slot = next(on_bus, None)
        if slot is None:
            raise _full(spec, len(wanted), only_ports)
        slots[device] = slot
    return msgspec.structs.replace(spec, slots=slots)


def _full(spec: DomainSpec, wanted: int, only_ports: bool) -> ResourceExhausted:
    if only_ports:
        problem = f"all {len(PORTS)} ports of '{spec.config.name}' are taken"
    else:
        room = len(_FREE[bus(spec.config)])
        problem = f"'{spec.config.name}' has {wanted} PCI devices, but there is room for {room}"
    return ResourceExhausted(problem, hint="Take a disk or a network interface away.")


def _settle_asked(spec: DomainSpec, slots: dict[str, int]) -> None:
    """Give those devices their slots that ask for a certain one."""
    for each in spec.config.pci:
        device = pci_device(each.address)
        if each.vslot is None or device in slots:
            continue
        if each.vslot not in _FREE[bus(spec.config)] or each.vslot in slots.values():
            other = next((other for other, slot in slots.items() if slot == each.vslot), "the machine itself")
            raise Conflict(
                f"{each.address} can't be in slot {each.vslot:x} of '{spec.config.name}': {other} is there",
                hint="Leave the slot out to have a free one.",
            )
        slots[device] = each.vslot


def can_be_plugged(spec: DomainSpec, device: str) -> bool:
    """Is this device of a laid-out spec where one can come and go while the domain runs?"""
    return bus(spec.config) == "pci.0" or spec.slots.get(device, 0) in PORTS


def address(config: DomainConfig, slots: Mapping[str, int], device: str) -> dict[str, str]:
    """The properties that put a device of a laid-out spec in its place."""
    if slots[device] in PORTS:
        return {"bus": port_name(slots[device]), "addr": "0x0"}
    return {"bus": bus(config), "addr": f"{slots[device]:#x}"}


def port_name(slot: int) -> str:
    """The id of a root port, and of the bus in it."""
    return f"port{slot - FIRST_PORT}"


def _pluggable(spec: DomainSpec) -> set[str]:
    """Devices that may be taken away while the domain runs. Old cards stay on the bus, for they may need I/O ports."""
    config = spec.config
    vifs = zip(vif_numbers(config.vif), config.vif, strict=True)
    disks = [disk.vdev for disk in config.disk if drive_bus(config, disk) == "virtio"]
    virtio = [vif_device(number) for number, vif in vifs if vif.paravirtual]
    return {*disks, *virtio, *(pci_device(device.address) for device in config.pci)}


def _devices(spec: DomainSpec) -> list[str]:
    """The ids of the PCI devices, in the order in which they get slots: a guest counts its disks in that order."""
    config = spec.config
    disks = sorted(config.disk, key=lambda disk: letter_index(disk.vdev))
    hvm = config.type is DomainType.HVM
    # A state from before there were ports has its devices where they were.
    express = bus(config) == "pcie.0" and (not spec.slots or PORT_GROUPS[0] in spec.slots)
    return [
        # First, so that disks in ports are found before those for which none is left.
        *(PORT_GROUPS if express else ()),
        *([CONSOLE] if has_virtio_console(spec) else []),
        *([SATA] if hvm and any(drive_bus(config, disk) == "sata" for disk in disks) else []),
        *(disk.vdev for disk in disks if drive_bus(config, disk) == "virtio" and disk.target),
        *(vif_device(number) for number in vif_numbers(config.vif)),
        BALLOON,
        RANDOM,
        AGENTS,
        *([DISPLAY] if hvm and config.vga in VGA_MODELS else []),
        *(share_device(share.tag) for share in config.p9),
        *([USB] if hvm and (config.usb or config.usbdev) else []),
        *(pci_device(device.address) for device in config.pci),
    ]

"""The host's PCI devices as sysfs shows them (Linux, Documentation/ABI/testing/sysfs-bus-pci), and its IOMMU."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pyxen.engine.passthrough.names import names
from pyxen.engine.passthrough.tree import HostTree, link_name, read, read_number, uses
from pyxen.errors import NotFound, Unsupported

VFIO = "vfio-pci"
"""The driver that hands devices over."""
_BRIDGE = 0x06
_CLASSES = {
    0x01: "storage controller",
    0x02: "network controller",
    0x03: "display controller",
    0x04: "multimedia controller",
    0x05: "memory controller",
    0x06: "bridge",
    0x07: "communication controller",
    0x08: "system peripheral",
    0x09: "input device",
    0x0B: "processor",
    0x0C: "serial bus controller",
    0x0D: "wireless controller",
    0x10: "encryption controller",
    0x12: "processing accelerator",
}
"""PCI Code and ID Assignment, base classes."""


@dataclass(frozen=True, slots=True)
class HostPciDevice:
    """A device on the host's PCI buses."""

    address: str
    vendor: int
    device: int
    class_code: int
    """24 bits: base class, sub-class, interface."""
    driver: str | None
    group: int | None
    """Its IOMMU group; None: it is in none."""
    vendor_name: str
    device_name: str
    used: str
    """What the host does with it."""

    @property
    def bridge(self) -> bool:
        return self.class_code >> 16 == _BRIDGE

    @property
    def kind(self) -> str:
        return _CLASSES.get(self.class_code >> 16, "device")

    @property
    def assignable(self) -> bool:
        """Is it bound to the driver that hands devices over?"""
        return self.driver == VFIO

    @property
    def label(self) -> str:
        """What a reader may know it by."""
        known = " ".join(part for part in (self.vendor_name, self.device_name) if part)
        return known or f"{self.kind} {self.vendor:04x}:{self.device:04x}"


def device_path(tree: HostTree, address: str) -> Path:
    return tree.sys / "bus/pci/devices" / address


def devices(tree: HostTree) -> list[HostPciDevice]:
    """All of them, by address. Blocking."""
    found = sorted((tree.sys / "bus/pci/devices").glob("*"))
    return [device(tree, path.name) for path in found]


def device(tree: HostTree, address: str) -> HostPciDevice:
    """One of them. Raises NotFound."""
    path = device_path(tree, address)
    if not path.exists():
        raise NotFound(
            f"this host has no PCI device {address}", hint="See what there is: xm pci-list-assignable-devices --all"
        )
    vendor, model = read_number(path / "vendor"), read_number(path / "device")
    driver, group = link_name(path / "driver"), link_name(path / "iommu_group")
    used = uses(tree, path)
    if not used and read(path / "boot_vga") == "1" and driver not in (None, VFIO):
        used = "it is the screen that this host started with"
    return HostPciDevice(
        address,
        vendor,
        model,
        read_number(path / "class"),
        driver,
        int(group) if group is not None and group.isdecimal() else None,
        *names(tree.share, "pci.ids", vendor, model),
        used,
    )


def group_members(tree: HostTree, group: int) -> list[HostPciDevice]:
    """The devices that the IOMMU can't tell from each other."""
    found = sorted((tree.sys / "kernel/iommu_groups" / str(group) / "devices").glob("*"))
    return [device(tree, path.name) for path in found]


def check_iommu(tree: HostTree) -> None:
    """Raises Unsupported, with what is missing and what would help, if the host has no IOMMU that works."""
    if next((tree.sys / "kernel/iommu_groups").glob("*"), None) is not None:
        return
    tables = tree.sys / "firmware/acpi/tables"
    words = read(tree.proc / "cmdline").split()
    off = next((word for word in words if word in ("iommu=off", "intel_iommu=off", "amd_iommu=off")), None)
    for table, name, switch in (("DMAR", "Intel VT-d", "intel_iommu=on"), ("IVRS", "AMD-Vi", "amd_iommu=on")):
        if not (tables / table).exists():
            continue
        if off is not None:
            hint = f"Take {off} off the kernel's command line, and restart the host."
        elif switch in words or table == "IVRS":
            hint = "The kernel says why: dmesg | grep -e DMAR -e IOMMU -e AMD-Vi"
        else:
            hint = f"Put {switch} on the kernel's command line, and restart the host."
        raise Unsupported(
            f"this host's IOMMU ({name}) is there, as its firmware says (ACPI table {table}), but the kernel does not "
            "use it",
            hint=hint,
        )
    virtual = "hypervisor" in read(tree.proc / "cpuinfo").split()
    raise Unsupported(
        "this host has no IOMMU, without which a PCI device could reach all of its memory: its firmware has neither "
        "of the ACPI tables DMAR (Intel VT-d) and IVRS (AMD-Vi)",
        hint="It is a virtual machine itself: whoever runs it must give it one (QEMU: -device intel-iommu)."
        if virtual
        else "Switch VT-d or AMD-Vi on in the firmware's set-up.",
    )

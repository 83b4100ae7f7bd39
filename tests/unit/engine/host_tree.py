"""A host's sysfs, made in a folder, with a kernel that binds drivers when it is told to."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pyxen.engine.passthrough.tree import HostTree, link_name

NIC, SOUND, DISK, SCREEN, BRIDGE = (
    "0000:03:00.0",
    "0000:03:00.1",
    "0000:00:17.0",
    "0000:00:02.0",
    "0000:00:1c.0",
)
MOUNTS = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n23 22 0:5 / /dev rw - devtmpfs udev rw\n"


@dataclass(frozen=True, slots=True)
class MadeTree(HostTree):
    """What is written into its files has the effect that it has on the kernel (drivers/base/bus.c)."""

    broken: set[str] = field(default_factory=set)
    """Drivers that bind nothing."""

    def write(self, path: Path, text: str) -> None:
        HostTree.write(self, path, text)
        if path.name == "unbind":
            (self.sys / "bus/pci/devices" / text / "driver").unlink()
        elif path.name == "drivers_probe":
            device = self.sys / "bus/pci/devices" / text
            wanted = (device / "driver_override").read_text().strip() or (device / "usual").read_text()
            self.bind(text, wanted)
        elif path.name == "bind":
            self.bind(text, path.parent.name)

    def bind(self, address: str, driver: str) -> None:
        device, place = self.sys / "bus/pci/devices" / address, self.sys / "bus/pci/drivers" / driver
        if driver not in self.broken and place.exists() and not (device / "driver").is_symlink():
            (device / "driver").symlink_to(place)

    def driver(self, address: str) -> str | None:
        return link_name(self.sys / "bus/pci/devices" / address / "driver")

    def add_pci(self, address: str, class_code: int, driver: str | None, group: int | None, *, upon: str = "") -> Path:
        """A device, below the one at ``upon`` if there is one; returns its folder."""
        place = self.sys / "devices/pci0000:00" / upon / address
        place.mkdir(parents=True)
        (self.sys / "bus/pci/devices" / address).symlink_to(place)
        facts = {"vendor": "0x8086\n", "device": "0x10d3\n", "class": f"{class_code:#08x}\n", "usual": driver or ""}
        for name, text in (facts | {"driver_override": "(null)\n"}).items():
            (place / name).write_text(text)
        (place / "driver_override").write_text("")
        if driver is not None:
            drivers = self.sys / "bus/pci/drivers" / driver
            drivers.mkdir(parents=True, exist_ok=True)
            for name in ("bind", "unbind"):
                (drivers / name).touch()
            (place / "driver").symlink_to(drivers)
        if group is not None:
            members = self.sys / "kernel/iommu_groups" / str(group) / "devices"
            members.mkdir(parents=True, exist_ok=True)
            (members / address).symlink_to(place)
            (place / "iommu_group").symlink_to(members.parent)
            (self.dev / "vfio").mkdir(parents=True, exist_ok=True)
            (self.dev / "vfio" / str(group)).touch()
        return place

    def add_below(self, kind: str, name: str, device: Path, **facts: str) -> Path:
        """A network interface or a disk of a device."""
        place = device / kind / name
        place.mkdir(parents=True)
        for fact, text in facts.items():
            (place / fact).write_text(text)
        (self.sys / "class" / kind).mkdir(parents=True, exist_ok=True)
        (self.sys / "class" / kind / name).symlink_to(place)
        return place

    def add_usb(self, port: str, bus: int, address: int, ids: str, name: str = "", *, hub: bool = False) -> Path:
        place = self.sys / "devices/usb" / port
        place.mkdir(parents=True)
        (self.sys / "bus/usb/devices").mkdir(parents=True, exist_ok=True)
        (self.sys / "bus/usb/devices" / port).symlink_to(place)
        vendor, _, product = ids.partition(":")
        facts = {"busnum": str(bus), "devnum": str(address), "idVendor": vendor, "idProduct": product, "product": name}
        for fact, text in (facts | {"bDeviceClass": "09" if hub else "00"}).items():
            (place / fact).write_text(f"{text}\n")
        node = self.dev / "bus/usb" / f"{bus:03d}" / f"{address:03d}"
        node.parent.mkdir(parents=True, exist_ok=True)
        node.touch()
        return place


def make_tree(root: Path, *, iommu: bool = True) -> MadeTree:
    """A host with a network card that shares its group with a sound card, a disk's controller, a screen, a bridge."""
    tree = MadeTree(root / "sys", root / "proc", root / "dev", root / "share")
    for folder in ("bus/pci/devices", "bus/pci/drivers/vfio-pci", "firmware/acpi/tables"):
        (tree.sys / folder).mkdir(parents=True)
    (tree.sys / "bus/pci/drivers_probe").touch()
    for name in ("bind", "unbind"):
        (tree.sys / "bus/pci/drivers/vfio-pci" / name).touch()
    for name, text in {"cmdline": "quiet", "cpuinfo": "flags : fpu vmx", "swaps": "", "1/mountinfo": MOUNTS}.items():
        (tree.proc / name).parent.mkdir(parents=True, exist_ok=True)
        (tree.proc / name).write_text(text)
    groups = (1, 2, 3, 12) if iommu else (None,) * 4
    screen = tree.add_pci(SCREEN, 0x030000, "i915", groups[0])
    (screen / "boot_vga").write_text("1\n")
    disk = tree.add_pci(DISK, 0x010601, "ahci", groups[1])
    tree.add_below("block", "sda", disk, dev="8:0\n")
    tree.add_below("block", "sda1", disk, dev="8:1\n")
    tree.add_pci(BRIDGE, 0x060400, "pcieport", groups[2])
    tree.add_pci(NIC, 0x020000, "e1000e", groups[3], upon=BRIDGE)
    tree.add_pci(SOUND, 0x040300, "snd_hda_intel", groups[3], upon=BRIDGE)
    return tree

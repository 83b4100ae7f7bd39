"""Taking a PCI device from its driver for vfio-pci, and giving it back. Blocking.

By ``driver_override``: no other device of the same kind is concerned (sysfs-bus-pci).
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess

from pyxen.engine.passthrough.pci import VFIO, HostPciDevice, check_iommu, device, device_path
from pyxen.engine.passthrough.tree import HostTree
from pyxen.errors import Conflict, EngineError, PyxenError, Unsupported

_MODPROBE_S = 30.0


def check_takeable(tree: HostTree, address: str) -> HostPciDevice:
    """The device, if it may be given away. Raises PyxenError with the reason if not."""
    found = device(tree, address)
    check_iommu(tree)
    if found.bridge:
        raise Unsupported(f"{address} is a bridge: what lies behind it can be given away, it can't")
    if found.group is None:
        raise Unsupported(
            f"{address} is in no IOMMU group, so nothing would keep it from the host's memory",
            hint="An emulated or built-in device may lie outside of what the IOMMU guards.",
        )
    if found.used and not found.assignable:
        raise Conflict(
            f"{address} ({found.label}) is in use by the host: {found.used}", hint="Have the host let go of it first."
        )
    return found


def take(tree: HostTree, address: str) -> None:
    """Bind a device to vfio-pci. Raises PyxenError; then it has its old driver again."""
    found = check_takeable(tree, address)
    if found.assignable:
        return
    load_driver(tree)
    path = device_path(tree, address)
    try:
        tree.write(path / "driver_override", VFIO)
        if found.driver is not None:
            tree.write(path / "driver" / "unbind", address)
        tree.write(tree.sys / "bus/pci/drivers_probe", address)
        problem = "" if device(tree, address).assignable else "the kernel did not bind it; dmesg may say why"
    except OSError as error:
        problem = _reason(error)
    if problem:
        with contextlib.suppress(PyxenError):
            give_back(tree, address, found.driver)
        raise EngineError(f"{address} can't be bound to {VFIO}: {problem}")


def give_back(tree: HostTree, address: str, driver: str | None) -> None:
    """Take a device from vfio-pci; ``driver`` gets it, or the one that the kernel finds. Raises PyxenError."""
    path = device_path(tree, address)
    try:
        tree.write(path / "driver_override", "\n")
        now = device(tree, address).driver
        if now == VFIO:
            tree.write(path / "driver" / "unbind", address)
        if now in (VFIO, None):
            own = tree.sys / "bus/pci/drivers" / str(driver) / "bind"
            with contextlib.suppress(OSError):
                if driver is not None and own.exists():
                    tree.write(own, address)
            if device(tree, address).driver is None:
                tree.write(tree.sys / "bus/pci/drivers_probe", address)
    except OSError as error:
        raise EngineError(f"{address} can't be given back to {driver or 'the host'}: {_reason(error)}") from error


def load_driver(tree: HostTree) -> None:
    """Have the kernel load vfio-pci. Raises Unsupported with its words if it can't."""
    place = tree.sys / "bus/pci/drivers" / VFIO
    if place.exists():
        return
    said = "there is no modprobe here"
    if modprobe := shutil.which("modprobe"):
        try:
            done = subprocess.run([modprobe, VFIO], capture_output=True, text=True, timeout=_MODPROBE_S, check=False)
            said = done.stderr.strip() or f"modprobe ended with status {done.returncode}"
        except (OSError, subprocess.TimeoutExpired) as error:
            said = str(error)
    if not place.exists():
        raise Unsupported(
            f"this kernel has no driver {VFIO}: {said}",
            hint="It is a module of the kernel's own package: modprobe vfio-pci",
        )


def _reason(error: OSError) -> str:
    if isinstance(error, PermissionError):
        return f"{error.filename} can't be written to: only root's xend may do this"
    return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)

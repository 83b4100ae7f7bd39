"""What must be so before a domain gets PCI devices, and the right to open them. Blocking.

The kernel hands out IOMMU groups, not devices: whoever opens ``/dev/vfio/GROUP`` gets all that is in it, and only when
no other driver has any of it (Linux, Documentation/driver-api/vfio.rst). All of the guest's memory is locked then.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from pyxen.config.model import PciDevice
from pyxen.engine.contract import DomainSpec
from pyxen.engine.passthrough.binding import check_takeable, load_driver
from pyxen.engine.passthrough.pci import HostPciDevice, device, group_members
from pyxen.engine.passthrough.tree import HostTree, read
from pyxen.errors import Conflict, EngineError, NotFound, Unsupported

_OWN_MIB = 1024
"""What QEMU may lock besides the guest's memory: its tables, and firmware that is mapped for devices."""
_CAP_SYS_RESOURCE = 24
_LET_GO_S, _LOOK_S = 2.0, 0.05
_HARMLESS = (None, "vfio-pci", "pci-stub", "pcieport")
"""Drivers of a group's other members with which the kernel still hands it out."""


def check_free(tree: HostTree, name: str, wanted: Iterable[PciDevice], running: Iterable[DomainSpec]) -> None:
    """Raises PyxenError, with the reason, if the domain ``name`` can't have these devices of the host."""
    wanted = list(wanted)
    if not wanted:
        return
    owners = {each.address: spec.config.name for spec in running for each in spec.config.pci}
    for each in wanted:
        found = check_takeable(tree, each.address)
        if (owner := owners.get(each.address)) is not None:
            raise Conflict(f"{each.address} ({found.label}) is in use by domain '{owner}'")
        if not found.assignable:
            raise Conflict(
                f"{each.address} ({found.label}) is not assignable: it has the driver {found.driver or 'none'}",
                hint=f"Take it from the host: xm pci-assignable-add {each.address}",
            )
        _check_group(tree, name, found, owners)


def _check_group(tree: HostTree, name: str, found: HostPciDevice, owners: Mapping[str, str]) -> None:
    assert found.group is not None
    for other in group_members(tree, found.group):
        if other.bridge or other.address == found.address:
            continue
        shared = f"{found.address} shares IOMMU group {found.group} with {other.address} ({other.label})"
        owner = owners.get(other.address)
        if owner is not None and owner != name:
            raise Conflict(
                f"{shared}, which domain '{owner}' has", hint="The devices of a group go to one domain together."
            )
        if other.driver not in _HARMLESS:
            used = f", and {other.used}" if other.used else ""
            raise Conflict(
                f"{shared}, which the host has: its driver is {other.driver}{used}",
                hint=f"A group goes to a domain as a whole: xm pci-assignable-add {other.address}",
            )


def check_unused(tree: HostTree, found: HostPciDevice) -> None:
    """Raises Conflict if a process has the device's group open: no other driver can have any of it before.

    Taking a device from vfio-pci would wait for that process, for ever perhaps. QEMU lets go of a device a moment after
    it has said so.
    """
    deadline = time.monotonic() + _LET_GO_S
    while users := _users(tree, found.group):
        if time.monotonic() > deadline:
            pid, name = users[0]
            raise Conflict(
                f"IOMMU group {found.group}, in which {found.address} is, is in use by process {pid} ({name})",
                hint="Its devices go back to the host when no domain has any of them.",
            )
        time.sleep(_LOOK_S)


def _users(tree: HostTree, group: int | None) -> list[tuple[int, str]]:
    """The processes that have an IOMMU group open, as far as this one may see."""
    node, users = tree.dev / "vfio" / str(group), []
    for process in tree.proc.glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if any(entry.is_symlink() and entry.readlink() == node for entry in (process / "fd").iterdir()):
                users.append((int(process.name), read(process / "comm")))
    return users


def locked_bytes(spec: DomainSpec) -> int:
    """How much memory the monitor of a domain with such devices must be allowed to lock."""
    return (spec.most_memory_mib + _OWN_MIB) << 20


def check_locking(spec: DomainSpec) -> None:
    """Raises Unsupported if this process's limit doesn't let a domain's monitor lock the guest's memory."""
    most = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    if most == resource.RLIM_INFINITY or most >= locked_bytes(spec) or _may_raise_limits():
        return
    raise Unsupported(
        f"all memory of '{spec.config.name}' must be locked while it has a PCI device, with what QEMU needs "
        f"{locked_bytes(spec) >> 20} MiB; this user may lock {most >> 20} MiB",
        hint="Raise the limit for xend: LimitMEMLOCK= in its unit, or memlock in /etc/security/limits.conf.",
    )


def _may_raise_limits() -> bool:
    """Has this process CAP_SYS_RESOURCE? Root has, unless it is in a container (linux/capability.h)."""
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", read(Path("/proc/self/status")), re.MULTILINE)
    return found is not None and bool(int(found[1], 16) >> _CAP_SYS_RESOURCE & 1)


def lock_words(spec: DomainSpec) -> list[str]:
    """What comes before a monitor's command line so that it may lock its guest's memory. Raises Unsupported."""
    if not spec.config.pci:
        return []
    check_locking(spec)
    if (prlimit := shutil.which("prlimit")) is None:
        raise Unsupported("prlimit is missing", hint="Install it: apt-get install util-linux")
    return [prlimit, f"--memlock={locked_bytes(spec)}:{locked_bytes(spec)}"]


def allow_locking(spec: DomainSpec, pid: int) -> None:
    """The same for a monitor that runs. Raises PyxenError."""
    check_locking(spec)
    try:
        resource.prlimit(pid, resource.RLIMIT_MEMLOCK, (locked_bytes(spec), locked_bytes(spec)))
    except (OSError, ValueError) as error:
        raise EngineError(f"the limit of locked memory of '{spec.config.name}' can't be raised: {error}") from error


def open_to(tree: HostTree, devices: Iterable[PciDevice], uid: int | None) -> None:
    """Let a domain's user open the groups of its devices. Raises PyxenError."""
    for each in devices:
        found = device(tree, each.address)
        node = tree.dev / "vfio" / str(found.group)
        try:
            if uid is not None:
                os.chown(node, uid, -1)
        except FileNotFoundError:
            load_driver(tree)
            raise EngineError(f"{node} is missing, though {each.address} is bound to vfio-pci") from None
        except OSError as error:
            raise EngineError(f"{node} can't be opened to '{uid}': {error.strerror}") from error
        if uid is None and not os.access(node, os.R_OK | os.W_OK):
            raise Unsupported(
                f"{node}, through which {each.address} is reached, can't be opened by this user",
                hint=f"As root: chown {os.geteuid()} {node}",
            )


def close_again(tree: HostTree, devices: Iterable[PciDevice], *, kept: Iterable[PciDevice] = ()) -> None:
    """Take that right back; groups of the ``kept`` ones stay open. Only root can have given it."""
    if os.geteuid() != 0:
        return
    stay = {_group(tree, each) for each in kept}
    for each in devices:
        group = _group(tree, each)
        if group is not None and group not in stay:
            with contextlib.suppress(OSError):
                os.chown(tree.dev / "vfio" / str(group), 0, -1)


def _group(tree: HostTree, each: PciDevice) -> int | None:
    try:
        return device(tree, each.address).group
    except NotFound:
        return None

"""Disks' block nodes in a QEMU that runs: opened here and handed over, made longer, let go of.

QEMU may be the monitor of a domain, or a server of disks (engine.storage).
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from pyxen.config.model import Disk
from pyxen.engine.descriptors import Descriptors
from pyxen.engine.layers import Drive, block_nodes, node_name, open_drives
from pyxen.engine.qemu.qmp import Session
from pyxen.errors import InvalidRequest, PyxenError

_FD_SET = re.compile(rb"/dev/fdset/([0-9]+)")


async def open_drive(monitor: Session, disk: Disk) -> Drive:
    """Open a disk's layers, give them to QEMU, and make its block nodes of them. Raises PyxenError."""
    sets = await monitor.execute("query-fdsets")
    with Descriptors(first=max((each["fdset-id"] for each in sets), default=0) + 1) as descriptors:
        (drive,) = await asyncio.to_thread(open_drives, [disk], descriptors)
        for number, fd in descriptors.sets.items():
            await monitor.execute("add-fd", {"fdset-id": number}, fd=fd)
        for node in block_nodes(drive):
            await monitor.execute("blockdev-add", _nested(node))
    return drive


async def free_drive(monitor: Session, vdev: str) -> None:
    """Let go of a disk's block nodes, and of their files, as far as there are any."""
    nodes = await _nodes(monitor)
    # The one that the guest saw first: those below are in use by it.
    names = sorted(
        (name for name in nodes if name.rpartition(".")[0] == vdev), key=lambda name: int(name.rpartition(".")[2])
    )
    sets = {int(each) for name in names for each in _FD_SET.findall(msgspec.json.encode(nodes[name]))}
    for name in names:
        with contextlib.suppress(PyxenError):
            await monitor.execute("blockdev-del", {"node-name": name})
    for each in sets:
        with contextlib.suppress(PyxenError):
            await monitor.execute("remove-fd", {"fdset-id": each})


async def check_growth(monitor: Session, vdev: str, size: int) -> None:
    """Raises InvalidRequest if the disk has more than ``size`` bytes."""
    now = int((await _nodes(monitor))[node_name_of(vdev)]["image"]["virtual-size"])
    if size < now:
        raise InvalidRequest(
            f"disk {vdev} has {now} bytes, and can't be made smaller while a domain uses it",
            hint="What lies behind the new end would be lost.",
        )


async def resize(monitor: Session, vdev: str, size: int) -> None:
    """Make a disk ``size`` bytes long. Raises InvalidRequest if it is longer already."""
    await check_growth(monitor, vdev, size)
    await monitor.execute("block_resize", {"node-name": node_name_of(vdev), "size": size})


async def limit(monitor: Session, disk: Disk, bus: str) -> None:
    """Hold a disk on this bus to the rates that it has now."""
    # A virtio device is two for QEMU: the one on the bus, and the disk behind it.
    place = f"/machine/peripheral/{disk.vdev}/virtio-backend" if bus == "virtio" else disk.vdev
    both = {"bps": disk.rate or 0, "iops": disk.iops or 0}
    apart = dict.fromkeys(("bps_rd", "bps_wr", "iops_rd", "iops_wr"), 0)
    await monitor.execute("block_set_io_throttle", {"id": place, **both, **apart})


def node_name_of(vdev: str) -> str:
    """The block node that a disk's guest sees."""
    return node_name(Drive(Disk(vdev=vdev), ()))


async def _nodes(monitor: Session) -> Mapping[str, Any]:
    return {node["node-name"]: node for node in await monitor.execute("query-named-block-nodes", {"flat": True})}


def _nested(node: Mapping[str, str | bool]) -> dict[str, Any]:
    """Properties with dots in their names as QMP wants them: ``file.driver`` is ``driver`` of ``file``."""
    nested: dict[str, Any] = {}
    for key, value in node.items():
        *above, last = key.split(".")
        place = nested
        for part in above:
            place = place.setdefault(part, {})
        place[last] = value
    return nested

"""Disks that are not raw, for the Xen engine: a QEMU without a machine knows their formats and serves them as NBD.

One such process for each domain that has such disks, as the domain's own user. It opens nothing by name: xend opens
every layer and lets it inherit the descriptors (QEMU's smaller storage daemon can't be handed any). xend has it serve
them by QMP on ``storage.sock``; the domain's process connects to ``disks.sock``, where each disk is an export of its
vdev's name. The server runs on when xend goes, and ends with the domain.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path

from pyxen.config.model import Disk, DiskFormat
from pyxen.engine.descriptors import Descriptors
from pyxen.engine.layers import Drive, block_nodes, is_writable, node_name, node_words, open_drives
from pyxen.engine.process import marker, start_daemon
from pyxen.engine.qemu import qmp
from pyxen.engine.qemu.launch import find_binary
from pyxen.engine.sockets import listen
from pyxen.engine.user import as_user
from pyxen.errors import EngineError

DISKS_SOCKET = "disks.sock"
_CONTROL_SOCKET = "storage.sock"
_START_S = 30.0


def served(disks: Iterable[Disk]) -> list[Disk]:
    """Those of a domain's disks that the hypervisor itself can't read."""
    return [disk for disk in disks if disk.target and disk.format is DiskFormat.QCOW2]


async def serve(disks: Iterable[Disk], directory: Path, uid: int | None) -> None:
    """Start the server for ``disks`` (from :func:`served`) of the domain in ``directory``.

    Raises EngineError or ConfigError naming the disk; then it may have been started, and is ended with the domain.
    """
    with Descriptors() as descriptors:
        drives = open_drives(disks, descriptors)
        control = descriptors.take(listen(directory, _CONTROL_SOCKET))
        exports = descriptors.take(listen(directory, DISKS_SOCKET))
        command = [*as_user(uid), *_words(directory, drives, control), *descriptors.arguments]
        said = await asyncio.to_thread(start_daemon, command, pass_fds=descriptors.fds)
        if said:
            raise EngineError(f"QEMU can't read the domain's disks: {said.rpartition('qemu-system-x86_64: ')[2]}")
        async with qmp.session(directory, _CONTROL_SOCKET, timeout_s=_START_S) as client:
            await client.execute("getfd", {"fdname": "disks"}, fd=exports)
            address = {"type": "fd", "data": {"str": "disks"}}
            await client.execute("nbd-server-start", {"addr": address, "max-connections": 0})
            for drive in drives:
                name = drive.disk.vdev
                export = {"type": "nbd", "id": name, "name": name, "node-name": node_name(drive)}
                await client.execute("block-export-add", {**export, "writable": is_writable(drive.disk)})


def _words(directory: Path, drives: Iterable[Drive], control: int) -> list[str]:
    return [
        *(find_binary(), "-machine", "none", "-nodefaults", "-no-user-config", "-display", "none"),
        # One more place to look for firmware, where there is none: what tells this process from all others.
        *("-L", marker(directory), "-sandbox", "on,obsolete=deny,resourcecontrol=deny", "-daemonize"),
        *("-chardev", f"socket,id=control,fd={control},server=on,wait=off", "-mon", "chardev=control,mode=control"),
        *(word for drive in drives for node in block_nodes(drive) for word in ("-blockdev", node_words(node))),
    ]

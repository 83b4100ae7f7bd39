"""Disks that are not raw, for the Xen engine: a QEMU without a machine knows their formats and serves them as NBD.

One such process for each domain that has such disks, as the domain's own user. It opens nothing by name: xend opens
every layer and hands over the descriptors (QEMU's smaller storage daemon can't be given any). xend has it serve them
by QMP on ``storage.sock``; at ``disks.sock`` each disk is an export of its vdev's name. The domain's process connects
there at its start; to a disk that comes later, when it can open nothing any more, xend does. The server runs on when
xend goes, and ends with the domain.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from pyxen.config.model import Disk, DiskFormat
from pyxen.engine.descriptors import Descriptors
from pyxen.engine.helpers import start_helper
from pyxen.engine.layers import Drive, block_nodes, is_writable, node_words, open_drives
from pyxen.engine.process import marker
from pyxen.engine.qemu import drives, qmp
from pyxen.engine.qemu.launch import find_binary
from pyxen.engine.sockets import connect, listen
from pyxen.engine.user import as_user
from pyxen.errors import EngineError, Unavailable

DISKS_SOCKET = "disks.sock"
_CONTROL_SOCKET = "storage.sock"
_START_S = 30.0
_LOOK_S = 1.0
_EXPORT_GONE = "BLOCK_EXPORT_DELETED"


def served(disks: Iterable[Disk]) -> list[Disk]:
    """Those of a domain's disks that the hypervisor itself can't read."""
    return [disk for disk in disks if is_served(disk)]


def is_served(disk: Disk) -> bool:
    return bool(disk.target) and disk.format is DiskFormat.QCOW2


async def serve(disks: Iterable[Disk], directory: Path, uid: int | None) -> None:
    """Start the server for ``disks`` (from :func:`served`) of the domain in ``directory``.

    Raises EngineError or ConfigError naming the disk; then it may have been started, and is ended with the domain.
    """
    with Descriptors() as descriptors:
        opened = open_drives(disks, descriptors)
        control = descriptors.take(listen(directory, _CONTROL_SOCKET))
        exports = descriptors.take(listen(directory, DISKS_SOCKET))
        command = [*as_user(uid), *_words(directory, opened, control), *descriptors.arguments]
        said = await asyncio.to_thread(start_helper, command, directory, pass_fds=descriptors.fds)
        if said:
            (directory / _CONTROL_SOCKET).unlink(missing_ok=True)
            raise EngineError(f"QEMU can't read the domain's disks: {said.rpartition('qemu-system-x86_64: ')[2]}")
        async with qmp.session(directory, _CONTROL_SOCKET, timeout_s=_START_S) as client:
            await client.execute("getfd", {"fdname": "disks"}, fd=exports)
            address = {"type": "fd", "data": {"str": "disks"}}
            await client.execute("nbd-server-start", {"addr": address, "max-connections": 0})
            for drive in opened:
                await _export(client, drive.disk)


async def add(disk: Disk, directory: Path, uid: int | None) -> None:
    """Have one more disk served, by a server that is started for it if there is none. Raises as :func:`serve`."""
    if not (directory / _CONTROL_SOCKET).exists():
        await serve([disk], directory, uid)
        return
    async with _session(directory) as server:
        # What a xend may have left that died in the midst of this.
        await _forget(server, disk.vdev)
        try:
            await drives.open_drive(server, disk)
            await _export(server, disk)
        except BaseException:
            await _forget(server, disk.vdev)
            raise


async def remove(vdev: str, directory: Path) -> None:
    """Serve a disk no longer, and let go of its files. Raises EngineError, Unavailable."""
    async with _session(directory) as server:
        await _forget(server, vdev)


async def check_growth(vdev: str, size: int, directory: Path) -> None:
    """Raises InvalidRequest if the disk has more than ``size`` bytes."""
    async with _session(directory) as server:
        await drives.check_growth(server, vdev, size)


async def resize(disk: Disk, size: int, directory: Path) -> None:
    """Make a disk ``size`` bytes long. Every connection to it is closed, as what is exported can't change its size.

    Raises EngineError; then it is served as before.
    """
    async with _session(directory) as server:
        await _unexport(server, disk.vdev)
        try:
            await drives.resize(server, disk.vdev, size)
        finally:
            await _export(server, disk)


async def ensure_served(disk: Disk, directory: Path) -> None:
    """Serve a disk again, if a xend has died while it made it longer."""
    async with _session(directory) as server:
        if not await _is_exported(server, disk.vdev):
            await _export(server, disk)


async def open_disk(directory: Path) -> socket.socket:
    """A connection to the server, which blocks. Raises Unavailable."""
    try:
        connection = await connect(directory, DISKS_SOCKET)
    except OSError as error:
        raise Unavailable(f"the server of the domain's disks does not answer: {error.strerror}") from error
    connection.setblocking(True)
    return connection


def _session(directory: Path) -> AbstractAsyncContextManager[qmp.Session]:
    return qmp.session(directory, _CONTROL_SOCKET, timeout_s=_START_S)


async def _export(server: qmp.Session, disk: Disk) -> None:
    node = drives.node_name_of(disk.vdev)
    export = {"type": "nbd", "id": disk.vdev, "name": disk.vdev, "node-name": node}
    await server.execute("block-export-add", {**export, "writable": is_writable(disk)})


async def _unexport(server: qmp.Session, vdev: str) -> None:
    if await _is_exported(server, vdev):
        await server.execute("block-export-del", {"id": vdev, "mode": "hard"})
        while await _is_exported(server, vdev):
            await server.event(_EXPORT_GONE, timeout_s=_LOOK_S)


async def _forget(server: qmp.Session, vdev: str) -> None:
    await _unexport(server, vdev)
    await drives.free_drive(server, vdev)


async def _is_exported(server: qmp.Session, vdev: str) -> bool:
    return any(each["id"] == vdev for each in await server.execute("query-block-exports"))


def _words(directory: Path, opened: Iterable[Drive], control: int) -> list[str]:
    return [
        *(find_binary(), "-machine", "none", "-nodefaults", "-no-user-config", "-display", "none"),
        # One more place to look for firmware, where there is none: what tells this process from all others.
        *("-L", marker(directory), "-sandbox", "on,obsolete=deny,resourcecontrol=deny", "-daemonize"),
        *("-chardev", f"socket,id=control,fd={control},server=on,wait=off", "-mon", "chardev=control,mode=control"),
        *(word for drive in opened for node in block_nodes(drive) for word in ("-blockdev", node_words(node))),
    ]

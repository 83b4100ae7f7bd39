"""Disks and network interfaces that come and go while the hypervisor runs a guest.

All is opened here and handed over, since the domain's process is in its jail. What a device stood on besides (a disk's
place in the server, a network's process) is freed when the process has let go of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from pyxen.config.model import Disk, Vif, device_vif, vif_device
from pyxen.engine import storage
from pyxen.engine.contract import DomainSpec, StartedInfo
from pyxen.engine.layers import is_writable
from pyxen.engine.vifs import close_network, open_network
from pyxen.errors import Conflict, EngineError, PyxenError


class Order(Protocol):
    """Has the domain's process carry out a command; returns its answer. Raises PyxenError."""

    async def __call__(self, command: str, arguments: Mapping[str, object], fds: Sequence[int] = ()) -> Any: ...


async def add_disk(order: Order, disk: Disk, directory: Path, uid: int | None) -> None:
    """Raises PyxenError; then nothing of it is left."""
    try:
        fd = await _open(disk, directory, uid)
        try:
            await order("attach-disk", {"disk": msgspec.to_builtins(disk)}, [fd])
        finally:
            os.close(fd)
    except BaseException as error:
        await _take_back(order, disk.vdev, error)
        await free(disk.vdev, disk, directory)
        raise


async def add_vif(order: Order, number: int, spec: DomainSpec, vif: Vif, directory: Path, info: StartedInfo) -> None:
    """Raises as ``add_disk``. Its forwards go into ``info``."""
    before = list(info.forwards)
    try:
        fd = await asyncio.to_thread(open_network, spec, directory, number, vif, info)
        try:
            await order("attach-vif", {"number": number, "vif": msgspec.to_builtins(vif)}, [fd])
        finally:
            os.close(fd)
    except BaseException as error:
        info.forwards[:] = before
        await _take_back(order, vif_device(number), error)
        await asyncio.to_thread(close_network, directory, number)
        raise


async def resize(order: Order, disk: Disk, size: int, directory: Path) -> None:
    """Make a disk ``size`` bytes long. The requests of one that is served wait meanwhile, also if this xend dies."""
    if not storage.is_served(disk):
        await order("resize-disk", {"device": disk.vdev, "size": size})
        return
    await storage.check_growth(disk.vdev, size, directory)
    await order("hold-disk", {"device": disk.vdev})
    try:
        await storage.resize(disk, size, directory)
    finally:
        await reconnect(order, disk, size, directory)


async def let_go(order: Order, disk: Disk, directory: Path) -> None:
    """Close a served disk's files, so that they are no longer locked. Its requests wait until ``take_again``."""
    await order("hold-disk", {"device": disk.vdev})
    await storage.remove(disk.vdev, directory)


async def take_again(order: Order, disk: Disk, directory: Path, uid: int | None) -> None:
    """Undo that. Raises EngineError while another process has the files."""
    await storage.add(disk, directory, uid)
    await reconnect(order, disk, 0, directory)


async def reconnect(order: Order, disk: Disk, size: int, directory: Path) -> None:
    """Let the requests of a disk that was held go on."""
    await storage.ensure_served(disk, directory)
    with await storage.open_disk(directory) as connection:
        await order("resize-disk", {"device": disk.vdev, "size": size}, [connection.fileno()])


async def free(device: str, disk: Disk | None, directory: Path) -> None:
    """Let go of what a device stood on that is there no more; ``disk``: what it was, if it was one."""
    if (number := device_vif(device)) is not None:
        await asyncio.to_thread(close_network, directory, number)
    elif disk is not None and storage.is_served(disk):
        with contextlib.suppress(PyxenError):
            await storage.remove(device, directory)


async def _open(disk: Disk, directory: Path, uid: int | None) -> int:
    """A descriptor for the domain's process: the raw file's, or a connection to the server."""
    if storage.is_served(disk):
        await storage.add(disk, directory, uid)
        return (await storage.open_disk(directory)).detach()
    flags = os.O_RDWR if is_writable(disk) else os.O_RDONLY
    try:
        return await asyncio.to_thread(os.open, disk.target, flags | os.O_CLOEXEC)
    except OSError as error:
        raise EngineError(f"disk {disk.vdev}: cannot open {disk.target}: {error.strerror}") from error


async def _take_back(order: Order, device: str, error: BaseException) -> None:
    """The process may have got it, though it could not say so; unless it has refused it."""
    if not isinstance(error, Conflict):
        with contextlib.suppress(PyxenError):
            await order("detach", {"device": device, "force": True})

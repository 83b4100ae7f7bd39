"""Disks that two hosts don't share: made anew on the one that a domain goes to, and filled while it still runs here.

The monitors speak NBD with each other, each to a socket in its domain's folder. What lies between is a connection of
its own for each disk, under the same TLS as all else that two xends say. Before the first file is made, a journal names
all of them (STATE/arriving/ID): should the domain not arrive, a later xend knows what to remove.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import msgspec

from pyxen.engine.contract import COPIES, RunningDomain, copy_socket
from pyxen.engine.sockets import connect, listen, short_path
from pyxen.errors import ResourceExhausted
from pyxen.image.command import run
from pyxen.image.files import write_file
from pyxen.xend.migration import wire
from pyxen.xend.migration.wire import Link

_PIECE = 1 << 18
_LOOK_S = 0.2
_CONNECT_AGAIN_S = 0.05


class Journal:
    """The files that are made for a domain that arrives. Blocking."""

    def __init__(self, folder: Path, migration_id: str) -> None:
        self._path = folder / migration_id

    @classmethod
    def all(cls, folder: Path) -> list[tuple[str, Journal]]:
        """Those that an earlier xend has left, by their migrations."""
        return [(path.name, cls(folder, path.name)) for path in sorted(folder.glob("*"))]

    def make(self, facts: Sequence[wire.Fact]) -> None:
        """Make the files, empty. Raises ResourceExhausted; then none is left."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_file(self._path, [msgspec.json.encode([fact.path for fact in facts])], mode=0o600)
        made: list[Path] = []
        try:
            for fact in facts:
                path = Path(fact.path)
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
                made.append(path)
                _format(path, fact)
        except BaseException as error:
            for path in made:
                path.unlink(missing_ok=True)
            self._path.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise ResourceExhausted(f"a disk can't be made: {error}") from error
            raise

    def keep(self) -> None:
        """The domain has arrived: the files are its own."""
        self._path.unlink(missing_ok=True)

    def undo(self) -> None:
        """It has not, and never will: remove them."""
        with contextlib.suppress(OSError, msgspec.DecodeError):
            for path in msgspec.json.decode(self._path.read_bytes(), type=list[str]):
                Path(path).unlink(missing_ok=True)
        self._path.unlink(missing_ok=True)


def _format(path: Path, fact: wire.Fact) -> None:
    if fact.format == "raw":
        os.truncate(path, fact.size)
        return
    run(["qemu-img", "create", "-q", "-f", fact.format, path, str(fact.size)], what=f"make the disk {path}")


async def fill(link: Link, folder: Callable[[], Path | None], arriving: asyncio.Future[int]) -> None:
    """Lead a connection from the other side to the monitor that waits in ``folder``, until either ends it."""
    while not arriving.done():
        directory = folder()
        with contextlib.suppress(OSError):
            if directory is not None:
                connection = await connect(directory, COPIES)
                break
        await asyncio.sleep(_CONNECT_AGAIN_S)
    else:
        raise wire.Broken("the domain is not arriving any more")
    reader, writer = await asyncio.open_unix_connection(sock=connection)
    await link.send(wire.Ready())
    ends = asyncio.create_task(asyncio.wait((arriving,)))
    try:
        await _join(link, reader, writer, ends)
    finally:
        ends.cancel()


@contextlib.asynccontextmanager
async def copying(
    directory: Path,
    process: RunningDomain,
    vdevs: Sequence[str],
    uid: int | None,
    bandwidth: int | None,
    dial: Callable[[str], Awaitable[Link]],
) -> AsyncIterator[None]:
    """Copy disks for as long as the context lasts; ``dial`` makes the connection for one, ready to be used.

    Raises PyxenError. Unless the state has been sent with them, ``process.abandon_copies`` is still to be called then.
    """
    tunnels: list[asyncio.Task[None]] = []
    try:
        for vdev in vdevs:
            link = await dial(vdev)
            tunnels.append(asyncio.create_task(_tunnel(directory, vdev, uid, link)))
            await asyncio.sleep(0)  # it listens before anybody calls
            beginning = asyncio.create_task(process.copy_disk(vdev, bandwidth))
            try:
                await asyncio.wait((beginning, tunnels[-1]), return_when=asyncio.FIRST_COMPLETED)
                if not beginning.done():
                    tunnels[-1].result()
                    raise wire.Broken(f"the other side does not take disk {vdev}")
                await beginning
            finally:
                beginning.cancel()
        yield
    finally:
        for tunnel in tunnels:
            tunnel.cancel()
        await asyncio.gather(*tunnels, return_exceptions=True)


async def until_alike(process: RunningDomain, tell: Callable[[float | None], None]) -> None:
    """Wait until all copies are what their disks are. Raises EngineError if one can't be."""
    while True:
        done, whole, alike = await process.copies()
        if alike:
            return
        tell(done / whole if whole else None)
        await asyncio.sleep(_LOOK_S)


async def _tunnel(directory: Path, vdev: str, uid: int | None, link: Link) -> None:
    try:
        reader, writer = await asyncio.open_unix_connection(sock=await _called(directory, vdev, uid))
        await _join(link, reader, writer)
    finally:
        await link.close()


async def _called(directory: Path, vdev: str, uid: int | None) -> socket.socket:
    """Wait for the monitor, which runs as ``uid``, to connect to a disk's socket."""
    name = copy_socket(vdev)
    with socket.socket(fileno=listen(directory, name)) as listener, short_path(directory, name) as path:
        try:
            if uid is not None:
                os.chown(path, uid, uid)
            listener.setblocking(False)
            connection, _ = await asyncio.get_running_loop().sock_accept(listener)
        finally:
            Path(path).unlink(missing_ok=True)
    return connection


async def _join(
    link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *others: asyncio.Task[object]
) -> None:
    """Carry bytes both ways until one side has ended, or one of ``others``."""

    async def out() -> None:
        while data := await reader.read(_PIECE):
            await link.send_data(data)

    async def back() -> None:
        while True:
            match await link.receive():
                case bytes() as data:
                    writer.write(data)
                    await writer.drain()
                case _:
                    raise wire.Broken("something else came in the middle of a disk")

    ways = [asyncio.create_task(out()), asyncio.create_task(back())]
    try:
        await asyncio.wait((*ways, *others), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        writer.transport.abort()

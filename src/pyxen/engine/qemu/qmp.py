"""Commands to a running QEMU: a connection for each, made when it is needed and closed after it.

Nothing is listened to here; events come by the domain's ``events`` file.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import socket
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyxen.engine.sockets import short_path
from pyxen.errors import EngineError, Unavailable

if TYPE_CHECKING:
    from qemu.qmp import QMPClient

SOCKET = "control.sock"
_CONNECT_S = 30.0


class Session:
    """A connection. Raises as :func:`session` does."""

    def __init__(self, client: QMPClient, refusal: type[Exception]) -> None:
        self._client = client
        self._refusal = refusal

    async def execute(self, command: str, arguments: Mapping[str, object] | None = None, *, fd: int = -1) -> Any:
        """Have one command carried out, with a descriptor beside it unless ``fd`` is negative; returns its answer."""
        if fd >= 0:
            self._client.send_fd_scm(fd)
        try:
            return await self._client.execute(command, dict(arguments) if arguments else None)
        except self._refusal as error:
            raise EngineError(f"QEMU refused {command}: {error}") from error

    async def event(self, name: str, *, timeout_s: float) -> bool:
        """Wait for an event of this name; True if there has been one since the last look, or comes in time."""
        try:
            async with asyncio.timeout(timeout_s):
                while (await self._client.events.get())["event"] != name:
                    pass
        except TimeoutError:
            return False
        return True


@contextlib.asynccontextmanager
async def session(directory: Path, name: str = SOCKET, *, timeout_s: float | None = 30.0) -> AsyncIterator[Session]:
    """Several commands to the QEMU that listens at ``name`` in ``directory``, all of them in ``timeout_s`` seconds.

    Raises EngineError if QEMU refuses one, Unavailable if QEMU can't be reached or doesn't answer in time.
    """
    qmp = await asyncio.to_thread(importlib.import_module, "qemu.qmp")
    try:
        async with asyncio.timeout(timeout_s), _connected(qmp, directory, name) as client:
            yield Session(client, qmp.ExecuteError)
    except TimeoutError:
        waited = f" within {timeout_s:g} s" if timeout_s is not None else ""
        raise Unavailable(f"QEMU did not answer{waited}") from None
    except (qmp.QMPError, OSError, EOFError) as error:
        raise Unavailable(f"QEMU's control socket does not answer: {error}") from error


async def execute(
    directory: Path,
    command: str,
    arguments: Mapping[str, object] | None = None,
    *,
    fd: tuple[str, int] | None = None,
    timeout_s: float | None = 30.0,
) -> Any:
    """Have one command carried out; returns its answer. ``fd``: a name and a descriptor that QEMU gets before it.

    Raises EngineError if QEMU refuses it, Unavailable if QEMU can't be reached or doesn't answer in time.
    """
    async with session(directory, timeout_s=timeout_s) as client:
        if fd is not None:
            await client.execute("getfd", {"fdname": fd[0]}, fd=fd[1])
        return await client.execute(command, arguments)


@contextlib.asynccontextmanager
async def _connected(qmp: Any, directory: Path, name: str) -> AsyncIterator[QMPClient]:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.setblocking(False)
    client: QMPClient = qmp.QMPClient("pyxen")
    client.logger.disabled = True
    try:
        async with asyncio.timeout(_CONNECT_S):
            with short_path(directory, name) as path:
                await asyncio.get_running_loop().sock_connect(connection, path)
            await client.connect(connection)
    except BaseException:
        connection.close()
        raise
    try:
        yield client
    finally:
        with contextlib.suppress(qmp.QMPError, OSError, EOFError):
            await client.disconnect()

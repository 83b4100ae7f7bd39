"""UNIX sockets in a domain's folder."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from pyxen.api import AgentKind

_LONGEST_UNIX_PATH = 107

AGENTS = {AgentKind.PYXEN: "agent.sock", AgentKind.QEMU: "qga.sock"}
"""Lead to the agents in the guest, where there are some."""
AGENT = AGENTS[AgentKind.PYXEN]
AGENT_PORTS = {AgentKind.PYXEN: "agent-port", AgentKind.QEMU: "qga-port"}
"""Ids of QEMU's devices behind them; of those that have one it says when the guest opens them."""
GDB = "gdb.sock"
"""Leads to the engine's stub for gdb."""


@contextlib.contextmanager
def short_path(directory: Path, name: str) -> Iterator[str]:
    """A name for the socket that fits into a socket address, however deep the folder lies."""
    path = str(directory / name)
    if len(os.fsencode(path)) <= _LONGEST_UNIX_PATH:
        yield path
        return
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{name}"
    finally:
        os.close(fd)


def listen(directory: Path, name: str) -> int:
    """Make a socket for a domain's process to inherit; returns its descriptor. It answers from now on."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with short_path(directory, name) as path:
            Path(path).unlink(missing_ok=True)
            listener.bind(path)
            Path(path).chmod(0o600)
        listener.listen(8)
        return listener.detach()
    finally:
        listener.close()


async def connect(directory: Path, name: str) -> socket.socket:
    """A connection that does not block. Raises OSError."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.setblocking(False)
    try:
        with short_path(directory, name) as path:
            await asyncio.get_running_loop().sock_connect(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection

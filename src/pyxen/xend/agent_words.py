"""What has become of a command or file in a guest, in words."""

from __future__ import annotations

import asyncio
import errno
import os
import struct
from typing import Final

from pyxen import agent_api
from pyxen.errors import Conflict, InvalidRequest, NotFound, PyxenError
from pyxen.xend.agent_contract import GuestCommand
from pyxen.xend.agent_link import Refused

ENV: Final = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
}
"""What a command in a guest gets besides what it is given."""
LAST_WORDS: Final = 1000
"""Bytes that are kept of what a command says."""
_NO_FILE = (errno.ENOENT, errno.ENOTDIR)


def ended(command: GuestCommand) -> agent_api.AgentEnded:
    """How a command has ended, from the status that wait(2) has of it."""
    status = command.wait_status or 0
    if os.WIFSIGNALED(status):
        return agent_api.AgentEnded(128 + os.WTERMSIG(status), os.WTERMSIG(status))
    return agent_api.AgentEnded(os.WEXITSTATUS(status))


async def run_to_end(
    name: str, command: GuestCommand, request: agent_api.AgentRequest, *, most: int = LAST_WORDS
) -> tuple[int, str]:
    """Wait for a command's end; its status, and the last ``most`` bytes that it has said. Raises PyxenError."""
    words = b""
    try:
        await command.end_input()
        while (piece := await command.output()) is not None:
            words = (words + piece[1])[-most:]
    except Refused as refused:
        raise explain(name, request, refused.errno) from None
    except asyncio.CancelledError:
        await command.abandon()
        raise
    return ended(command).status, words.decode(errors="replace").strip()


def started(request: agent_api.AgentRequest, payload: bytes) -> agent_api.AgentStarted:
    """What STARTED says, in words."""
    first, _, size = struct.unpack("<IIQ", payload)
    if isinstance(request, agent_api.ExecRequest):
        return agent_api.AgentStarted(pid=first or None)
    return agent_api.AgentStarted(mode=first & 0o7777, size=size)


def explain(name: str, request: agent_api.AgentRequest, number: int) -> PyxenError:
    """What a command or file of a guest has failed with, by Linux' number for it."""
    words = os.strerror(number)
    if number == errno.EAGAIN:
        return Conflict(f"'{name}' can start no more commands now")
    if not isinstance(request, agent_api.ExecRequest):
        verb = "read" if isinstance(request, agent_api.ReadFileRequest) else "write"
        what = f"cannot {verb} {request.path} in '{name}': {words}"
        if number == errno.EISDIR:
            return Conflict(what, hint="xm cp copies single files.")
        return NotFound(what) if number in _NO_FILE else Conflict(what)
    what = f"cannot run '{request.argv[0][:200]}' in '{name}': {words}"
    if number in _NO_FILE:
        return NotFound(what, hint=None if request.cwd == "/" else f"Is there the folder {request.cwd}?")
    if number == errno.EACCES:
        return Conflict(what, hint=f"May it be run, and is the folder {request.cwd} open to it?")
    return InvalidRequest(what) if number in (errno.EINVAL, errno.E2BIG) else Conflict(what)

"""Commands and files in guests, through their agents: one connection to each guest, made when it is first needed."""

from __future__ import annotations

import asyncio
import errno
import os
import struct
import time

from pyxen import agent_api
from pyxen.abi.agent import EXEC_TTY, Kind, Stream
from pyxen.errors import Conflict, InvalidRequest, NotFound, PyxenError, Unsupported
from pyxen.xend.agent_frames import exec_payload
from pyxen.xend.agent_link import Command, Link, Refused
from pyxen.xend.life import Life
from pyxen.xend.records import DOMAIN_0
from pyxen.xend.registry import Live

_ENV = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
}
_SEED_BYTES = 64
_RESTORED_S = 30.0
"""On the Xen engine the guest connects anew first, and its agent is started anew."""
_LAST_WORDS = 1000
_NO_FILE = (errno.ENOENT, errno.ENOTDIR)


class Agents:
    """Speaks to the agents of the domains that have one."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self._links: dict[str, tuple[int, Link]] = {}
        """By a domain's UUID, with the id that it had then."""
        self._opening: dict[str, asyncio.Lock] = {}

    async def begin(self, ref: str, request: agent_api.AgentRequest, *, patient: bool = False) -> Command:
        """Start a command, or open a file; returns when it has started. ``patient``: however long the guest takes.

        Raises Unsupported if no agent answers, NotFound, Conflict and InvalidRequest for what the guest refuses.
        """
        if ref in DOMAIN_0:
            raise Conflict("Domain-0 is the host itself: it has no agent")
        live = self._life.records.running(self._life.registry.find(ref))
        link = await self._link(live, None if patient else request.wait_s)
        return await begin_on(link, live.spec.config.name, request)

    async def tell_restored(self, live: Live) -> None:
        """Tell a guest that goes on somewhere else, or later, what time it is, and give it new random numbers.

        As well as it goes within half a minute, in which nobody waits for it; never raises.
        """
        uuid, name = live.spec.uuid, live.spec.config.name
        try:
            async with asyncio.timeout(_RESTORED_S):
                await self.forget(uuid)
                link = await self._link(live, _RESTORED_S)
                await link.order(Kind.RESEED, os.urandom(_SEED_BYTES))
                await link.order(Kind.SET_TIME, struct.pack("<QQ", *divmod(time.time_ns(), 10**9)))
        except (PyxenError, Refused, TimeoutError) as error:
            self._life.log.info("a restored guest could not be told the time", name=name, why=str(error) or "no answer")
        except Exception as error:
            self._life.log.warning("a restored guest could not be told the time", name=name, why=repr(error))

    async def run(self, live: Live, request: agent_api.ExecRequest) -> tuple[int, str]:
        """Run a command to its end; its status, and what it has said. Raises PyxenError."""
        link = await self._link(live, request.wait_s)
        command = await begin_on(link, live.spec.config.name, request)
        words = b""
        try:
            while (piece := await command.output()) is not None:
                words = (words + piece[1])[-_LAST_WORDS:]
        except Refused as refused:
            raise _explain(live.spec.config.name, request, refused.errno) from None
        except asyncio.CancelledError:
            await command.abandon()
            raise
        return ended(command).status, words.decode(errors="replace").strip()

    async def write(self, live: Live, request: agent_api.WriteFileRequest, data: bytes) -> None:
        """Make or replace a file. Raises PyxenError."""
        link = await self._link(live, request.wait_s)
        command = await begin_on(link, live.spec.config.name, request)
        await command.write(data)
        await command.end_input()
        await _to_its_end(command, live, request)

    async def size(self, live: Live, request: agent_api.ReadFileRequest) -> int:
        """How long a file is. Raises PyxenError, NotFound if there is none."""
        link = await self._link(live, request.wait_s)
        command = await begin_on(link, live.spec.config.name, request)
        size = started(request, await command.until_started()).size
        await _to_its_end(command, live, request)
        return size or 0

    async def forget(self, uuid: str) -> None:
        """Let go of the connection to a domain's agent."""
        _, link = self._links.pop(uuid, (0, None))
        if link is not None:
            link.close()

    def close(self) -> None:
        """Let go of all of them."""
        for _, link in list(self._links.values()):
            link.close()
        self._links.clear()

    async def _link(self, live: Live, wait_s: float | None) -> Link:
        """The connection to a running domain's agent, made if there is none. None: wait without end, paused or not."""
        uuid, name = live.spec.uuid, live.spec.config.name
        if wait_s is not None and (live.process.paused or live.process.suspended):
            how = "unpause" if live.process.paused else "resume"
            raise Conflict(f"Domain '{name}' stands still, its agent too", hint=f"xm {how} {name} lets it run.")
        async with self._opening.setdefault(uuid, asyncio.Lock()):
            domid, link = self._links.get(uuid, (0, None))
            if link is not None and domid == live.spec.domid and not link.broken:
                return link
            await self.forget(uuid)
            connection = await live.process.agent()
            try:
                link = await Link.open(name, connection, wait_s, ends_frames=live.process.ends_agent_frames)
            except TimeoutError:
                raise Unsupported(
                    f"no agent answered in '{name}' within {wait_s:g} s",
                    hint="Images built by xm image build bring one, and start it when they boot; is it still booting?",
                ) from None
            self._links[uuid] = (live.spec.domid, link)
            link.on_gone = lambda: self._gone(uuid, link)
            return link

    def _gone(self, uuid: str, link: Link) -> None:
        if self._links.get(uuid, (0, None))[1] is link:
            del self._links[uuid]
            self._opening.pop(uuid, None)


async def begin_on(link: Link, name: str, request: agent_api.AgentRequest) -> Command:
    """Start a command, or open a file, of the domain ``name``. Raises as ``Agents.begin``."""
    try:
        match request:
            case agent_api.ExecRequest():
                payload = exec_payload(
                    request.argv,
                    {**_ENV, **request.env},
                    request.cwd,
                    flags=EXEC_TTY if request.tty else 0,
                    rows=request.rows,
                    columns=request.columns,
                )
                return await link.begin(Kind.EXEC, 0, payload)
            case agent_api.ReadFileRequest():
                return await link.begin(Kind.OPEN, Stream.OUT, _open_payload(0, request.path))
            case agent_api.WriteFileRequest():
                return await link.begin(Kind.OPEN, Stream.IN, _open_payload(request.mode, request.path))
    except Refused as refused:
        raise _explain(name, request, refused.errno) from None


async def _to_its_end(command: Command, live: Live, request: agent_api.AgentRequest) -> None:
    """Let go of what a command or file says, up to its end. Raises PyxenError if it fails."""
    try:
        while await command.output() is not None:
            pass
    except Refused as refused:
        raise _explain(live.spec.config.name, request, refused.errno) from None


def ended(command: Command) -> agent_api.AgentEnded:
    """How a command has ended, from the status that wait(2) has of it."""
    status = command.wait_status or 0
    if os.WIFSIGNALED(status):
        return agent_api.AgentEnded(128 + os.WTERMSIG(status), os.WTERMSIG(status))
    return agent_api.AgentEnded(os.WEXITSTATUS(status))


def started(request: agent_api.AgentRequest, payload: bytes) -> agent_api.AgentStarted:
    """What STARTED says, in words."""
    first, _, size = struct.unpack("<IIQ", payload)
    if isinstance(request, agent_api.ExecRequest):
        return agent_api.AgentStarted(pid=first)
    return agent_api.AgentStarted(mode=first & 0o7777, size=size)


def explain(request: agent_api.AgentRequest, number: int) -> PyxenError:
    """What a file that was open has failed with."""
    return _explain("the guest", request, number)


def _explain(name: str, request: agent_api.AgentRequest, number: int) -> PyxenError:
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


def _open_payload(mode: int, path: str) -> bytes:
    return struct.pack("<I", mode) + path.encode(errors="surrogateescape") + b"\0"

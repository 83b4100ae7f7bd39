"""The agents in guests: which of them answers for a guest, and one connection to each, made when it is first needed.

Our own comes first, where a guest has it. QEMU's guest agent is asked where that one is known to be there and ours is
not: QEMU says which serial ports are open in the guest.
"""

from __future__ import annotations

import asyncio
import contextlib

from pyxen import agent_api
from pyxen.api import AgentKind
from pyxen.errors import Conflict, PyxenError, Unsupported
from pyxen.xend.agent_contract import GuestAgent, GuestCommand
from pyxen.xend.agent_link import Link, Refused
from pyxen.xend.agent_words import explain, run_to_end, started
from pyxen.xend.life import Life
from pyxen.xend.own_agent import OwnAgent
from pyxen.xend.qga import QemuAgent
from pyxen.xend.qga_link import QgaLink
from pyxen.xend.records import DOMAIN_0
from pyxen.xend.registry import Live

_RESTORED_S = 30.0
"""On the Xen engine the guest connects anew first, and its agent is started anew."""
_INTERFACES_S = 3.0


class Agents:
    """Speaks to the agents of the domains that have one."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self._agents: dict[tuple[str, AgentKind], tuple[int, GuestAgent]] = {}
        """By a domain's UUID, with the id that it had then."""
        self._opening: dict[str, asyncio.Lock] = {}

    async def begin(self, ref: str, request: agent_api.AgentRequest, *, patient: bool = False) -> GuestCommand:
        """Start a command, or open a file; returns when it has started. ``patient``: however long the guest takes.

        Raises Unsupported if no agent answers, NotFound, Conflict and InvalidRequest for what the guest refuses.
        """
        if ref in DOMAIN_0:
            raise Conflict("Domain-0 is the host itself: it has no agent")
        live = self._life.records.running(self._life.registry.find(ref))
        agent = await self.of(live, None if patient else request.wait_s)
        return await agent.begin(request)

    async def interfaces(self, ref: str) -> agent_api.GuestInterfaces:
        """A guest's network interfaces; none where no agent is known to be there, or it doesn't say."""
        record = self._life.registry.find(ref)
        live = self._life.registry.live.get(record.uuid)
        found = agent_api.GuestInterfaces(record.domid, record.name)
        if live is None or live.agent_kind is None or live.process.paused or live.process.suspended:
            return found
        with contextlib.suppress(PyxenError, TimeoutError):
            async with asyncio.timeout(_INTERFACES_S):
                agent = await self.of(live, _INTERFACES_S)
                found.interfaces = await agent.interfaces()
                found.agent = agent.kind
        return found

    async def tell_restored(self, live: Live) -> None:
        """Tell a guest that goes on somewhere else, or later, what time it is, and give it new random numbers.

        As well as it goes within half a minute, in which nobody waits for it; never raises.
        """
        uuid, name = live.spec.uuid, live.spec.config.name
        try:
            async with asyncio.timeout(_RESTORED_S):
                await self.forget(uuid)
                agent = await self.of(live, _RESTORED_S)
                await agent.wake()
                if agent.kind is AgentKind.PYXEN and AgentKind.QEMU in live.process.agents:
                    # It may have been saved with frozen file systems, which is this one's to end.
                    await (await self.of(live, _RESTORED_S, AgentKind.QEMU)).wake()
        except (PyxenError, TimeoutError) as error:
            self._life.log.info("a restored guest could not be told the time", name=name, why=str(error) or "no answer")
        except Exception as error:
            self._life.log.warning("a restored guest could not be told the time", name=name, why=repr(error))

    async def shut_down(self, live: Live, reason: str) -> None:
        """Have an agent that is known to be there shut its guest down. Raises PyxenError."""
        if live.agent_kind is not None:
            await (await self.of(live, _INTERFACES_S)).shut_down(reason)

    async def use_vcpus(self, live: Live, count: int) -> None:
        """Have a guest use so many of the VCPUs that it has. Raises PyxenError, Unsupported if no agent answers."""
        await (await self.of(live, agent_api.AGENT_WAIT_S)).use_vcpus(count)

    async def run(self, live: Live, request: agent_api.ExecRequest) -> tuple[int, str]:
        """Run a command to its end; its status, and what it has said last. Raises PyxenError."""
        command = await (await self.of(live, request.wait_s)).begin(request)
        return await run_to_end(live.spec.config.name, command, request)

    async def write(self, live: Live, request: agent_api.WriteFileRequest, data: bytes) -> None:
        """Make or replace a file. Raises PyxenError."""
        command = await (await self.of(live, request.wait_s)).begin(request)
        await command.write(data)
        await command.end_input()
        await _to_its_end(command, live, request)

    async def size(self, live: Live, request: agent_api.ReadFileRequest) -> int:
        """How long a file is. Raises PyxenError, NotFound if there is none."""
        command = await (await self.of(live, request.wait_s)).begin(request)
        size = started(request, command.started or bytes(16)).size
        await _to_its_end(command, live, request)
        return size or 0

    async def forget(self, uuid: str) -> None:
        """Let go of the connections to a domain's agents."""
        for kind in AgentKind:
            _, agent = self._agents.pop((uuid, kind), (0, None))
            if agent is not None:
                agent.close()

    def close(self) -> None:
        """Let go of all of them."""
        for _, agent in list(self._agents.values()):
            agent.close()
        self._agents.clear()

    async def of(self, live: Live, wait_s: float | None, kind: AgentKind | None = None) -> GuestAgent:
        """A running domain's agent, waited for. None: without end, paused or not. ``kind``: this one, and no other.

        Raises Unsupported if none answers, Conflict if the guest stands still.
        """
        uuid, name = live.spec.uuid, live.spec.config.name
        if wait_s is not None and (live.process.paused or live.process.suspended):
            how = "unpause" if live.process.paused else "resume"
            raise Conflict(f"Domain '{name}' stands still, its agent too", hint=f"xm {how} {name} lets it run.")
        async with self._opening.setdefault(uuid, asyncio.Lock()):
            if (known := self._known(live, kind)) is not None:
                return known
            try:
                agent = await (self._open(live, kind, wait_s) if kind else self._first(live, wait_s))
            except TimeoutError:
                raise Unsupported(
                    f"no agent answered in '{name}' within {wait_s:g} s",
                    hint="Images built by xm image build bring one, and start it when they boot; QEMU's guest agent "
                    "will do as well. Is it still booting?",
                ) from None
            self._agents[uuid, agent.kind] = (live.spec.domid, agent)
            if not live.process.agents:
                live.agent = agent.kind
            agent.on_gone = lambda: self._gone(uuid, agent)
            return agent

    def _known(self, live: Live, kind: AgentKind | None) -> GuestAgent | None:
        """An agent that is spoken to already, unless there is a better one by now."""
        kinds = [kind] if kind else list(AgentKind)
        for each in kinds:
            domid, agent = self._agents.get((live.spec.uuid, each), (0, None))
            if agent is not None and domid == live.spec.domid and not agent.broken:
                return agent
            if each in live.process.agents:
                return None
        return None

    async def _first(self, live: Live, wait_s: float | None) -> GuestAgent:
        """Whichever answers: ours, unless only QEMU's is there. Raises TimeoutError, PyxenError."""
        process, chosen = live.process, None
        ours = asyncio.create_task(self._open(live, AgentKind.PYXEN, wait_s))
        theirs = asyncio.create_task(process.until_agent(AgentKind.QEMU))
        try:
            await asyncio.wait((ours, theirs), return_when=asyncio.FIRST_COMPLETED)
            if not ours.done() and AgentKind.PYXEN in process.agents:
                await asyncio.wait((ours,))
            if AgentKind.QEMU in process.agents and not (ours.done() and ours.exception() is None):
                with contextlib.suppress(TimeoutError, PyxenError):
                    chosen = await self._open(live, AgentKind.QEMU, wait_s)
                    return chosen
            chosen = await ours
            return chosen
        finally:
            theirs.cancel()
            if not ours.done():
                ours.cancel()
            elif not ours.cancelled() and ours.exception() is None and ours.result() is not chosen:
                ours.result().close()

    async def _open(self, live: Live, kind: AgentKind, wait_s: float | None) -> GuestAgent:
        connection = await live.process.agent(kind)
        name = live.spec.config.name
        if kind is AgentKind.QEMU:
            return QemuAgent(await QgaLink.open(name, connection, wait_s))
        link = await Link.open(name, connection, wait_s, ends_frames=live.process.ends_agent_frames)
        return OwnAgent(name, link)

    def _gone(self, uuid: str, agent: GuestAgent) -> None:
        if self._agents.get((uuid, agent.kind), (0, None))[1] is agent:
            del self._agents[uuid, agent.kind]
            if (lock := self._opening.get(uuid)) is not None and not lock.locked():
                del self._opening[uuid]


async def _to_its_end(command: GuestCommand, live: Live, request: agent_api.AgentRequest) -> None:
    """Let go of what a command or file says, up to its end. Raises PyxenError if it fails."""
    try:
        while await command.output() is not None:
            pass
    except Refused as refused:
        raise explain(live.spec.config.name, request, refused.errno) from None

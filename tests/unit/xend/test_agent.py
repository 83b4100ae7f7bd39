"""Agents of domains: found, waited for, told what a restored guest must know."""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from pyxen import agent_api, api
from pyxen.abi.agent import Kind
from pyxen.engine.sockets import AGENT, listen
from pyxen.errors import Conflict, NotFound, Unsupported
from pyxen.xend.agent_words import ended, started
from tests.unit.xend.agents import Pretender, collect, start, until
from tests.unit.xend.conftest import Xend, describe

pytestmark = pytest.mark.anyio
Boot = Callable[..., Awaitable[Xend]]


def listener(xend: Xend) -> socket.socket:
    return socket.socket(fileno=listen(xend.process("web").directory, AGENT))


async def accept(listening: socket.socket) -> socket.socket:
    connection, _ = await asyncio.to_thread(listening.accept)
    return connection


async def test_a_command_runs_in_the_guest(boot: Boot) -> None:
    xend = await boot()
    await xend.domains.create(api.CreateRequest(describe()))
    request = agent_api.ExecRequest(["sh", "-c", "echo $HOME $X; exit 5"], env={"X": "y"})
    with listener(xend) as listening:
        beginning = asyncio.create_task(xend.domains.agent.begin("web", request))
        process = start(await accept(listening))
    command = await beginning
    assert started(request, command.started or b"").pid is not None
    assert (await collect(command))[1] == b"/root y\n"
    assert ended(command) == agent_api.AgentEnded(5)
    # The second one uses the same connection.
    command = await xend.domains.agent.begin("web", agent_api.ExecRequest(["sh", "-c", "kill $$"]))
    await collect(command)
    assert ended(command) == agent_api.AgentEnded(128 + 15, 15)
    with pytest.raises(NotFound, match="cannot run 'nonesuch' in 'web': No such file"):
        await xend.domains.agent.begin("web", agent_api.ExecRequest(["nonesuch"]))
    with pytest.raises(NotFound, match="cannot read /nonesuch in 'web': No such file"):
        await xend.domains.agent.begin("web", agent_api.ReadFileRequest("/nonesuch"))
    with pytest.raises(Conflict, match="cannot write / in 'web': Is a directory"):
        await xend.domains.agent.begin("web", agent_api.WriteFileRequest("/"))
    await xend.domains.pause("web")
    with pytest.raises(Conflict, match="stands still"):
        await xend.domains.agent.begin("web", request)
    xend.domains.agent.close()
    assert await asyncio.to_thread(process.wait, 60) == 0
    assert xend.domains.agent._agents == {}


async def test_a_file_is_written_whole(boot: Boot, tmp_path: Path) -> None:
    xend = await boot()
    await xend.domains.create(api.CreateRequest(describe()))
    live = xend.life.registry.live[xend.life.registry.find("web").uuid]
    file, agents, data = str(tmp_path / "file"), xend.domains.agent, bytes(range(256)) * 1000
    with listener(xend) as listening:
        writing = asyncio.create_task(agents.write(live, agent_api.WriteFileRequest(file), data))
        process = start(await accept(listening))
    await writing
    assert Path(file).read_bytes() == data
    assert await agents.size(live, agent_api.ReadFileRequest(file)) == len(data)
    await agents.write(live, agent_api.WriteFileRequest(file), b"short")
    assert Path(file).read_bytes() == b"short"
    with pytest.raises(NotFound, match="cannot read /nonesuch in 'web'"):
        await agents.size(live, agent_api.ReadFileRequest("/nonesuch"))
    with pytest.raises(Conflict, match="cannot write /dev/full in 'web': No space left"):
        await agents.write(live, agent_api.WriteFileRequest("/dev/full"), b"x")
    agents.close()
    assert await asyncio.to_thread(process.wait, 60) == 0


async def test_no_agent(boot: Boot) -> None:
    xend = await boot()
    await xend.domains.create(api.CreateRequest(describe()))
    request = agent_api.ExecRequest(["true"], wait_s=0.05)
    with pytest.raises(Conflict, match="host itself"):
        await xend.domains.agent.begin("Domain-0", request)
    with pytest.raises(Unsupported, match="no way leads to an agent"):
        await xend.domains.agent.begin("web", request)
    with listener(xend), pytest.raises(Unsupported, match=r"no agent answered in 'web' within 0\.05 s"):
        await xend.domains.agent.begin("web", request)


@pytest.mark.parametrize("refusal", [0, errno.EPERM])
async def test_a_restored_guest_is_told_the_time_and_given_random_numbers(boot: Boot, refusal: int) -> None:
    xend = await boot()
    await xend.domains.create(api.CreateRequest(describe()))
    live = xend.life.registry.live[xend.life.registry.find("web").uuid]
    await xend.domains.agent.tell_restored(live)  # there is none: nothing happens
    pretender = Pretender(refusal)
    with listener(xend) as listening:
        listening.setblocking(False)
        server = await asyncio.start_unix_server(pretender.serve, sock=listening)
        before = time.time_ns()
        await xend.domains.agent.tell_restored(live)
        after = time.time_ns()
        server.close()
        xend.domains.agent.close()
        await until(lambda: pretender.gone)
    hello, seed, *rest = pretender.frames
    assert (hello.kind, seed.kind, len(seed.payload)) == (Kind.HELLO, Kind.RESEED, 64)
    assert len(set(seed.payload)) > 16
    if refusal:
        assert not rest
        return
    (told,) = rest
    seconds, nanoseconds = struct.unpack("<QQ", told.payload)
    assert before <= seconds * 10**9 + nanoseconds <= after

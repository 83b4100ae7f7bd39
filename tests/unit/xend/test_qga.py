"""Commands, files and orders by QEMU's guest agent, and what a guest may send in its place."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyxen import agent_api, api
from pyxen.abi.qga import DELIMITER
from pyxen.api import AgentKind
from pyxen.engine.fake import FakeDomain
from pyxen.engine.sockets import AGENTS, listen
from pyxen.errors import Conflict, EngineError, NotFound, PyxenError, Unavailable, Unsupported
from pyxen.snapshot_api import SnapshotRequest
from pyxen.xend import qga_commands, qga_lines
from pyxen.xend.agent_words import ended
from pyxen.xend.qga import QemuAgent
from pyxen.xend.qga_lines import Answers
from pyxen.xend.qga_link import QgaError, QgaLink
from tests.unit.xend.agents import collect, settle, start, until
from tests.unit.xend.conftest import Xend, describe
from tests.unit.xend.qga import StandIn

pytestmark = pytest.mark.anyio
Boot = Callable[..., Awaitable[Xend]]
MUCH = os.urandom(300_000)


@asynccontextmanager
async def linked(stand_in: StandIn) -> AsyncIterator[QemuAgent]:
    host, guest = socket.socketpair()
    host.setblocking(False)
    reader, writer = await asyncio.open_unix_connection(sock=guest, limit=1 << 26)
    serving = asyncio.create_task(stand_in.serve(reader, writer))
    agent = QemuAgent(await QgaLink.open("web", host, 60))
    try:
        yield agent
    finally:
        agent.close()
        stand_in.end()
        await asyncio.wait((serving,))
        await settle()


@pytest.fixture
async def stand_in(tmp_path: Path) -> StandIn:
    return StandIn(tmp_path)


def run(*argv: str, cwd: str = "/", **env: str) -> agent_api.ExecRequest:
    return agent_api.ExecRequest(list(argv), env, cwd)


async def test_commands(stand_in: StandIn, tmp_path: Path) -> None:
    async with linked(stand_in) as agent:
        command = await agent.begin(run("sh", "-c", "pwd; echo $HOME $X; echo no >&2; exit 3", cwd="/usr", X="y"))
        assert await collect(command) == (3 << 8, b"/usr\n/root y\n", b"no\n")
        assert await collect(await agent.begin(run("cat")), MUCH) == (0, MUCH, b"")
        assert await collect(await agent.begin(run("sh", "-c", "kill -9 $$"))) == (9, b"", b"")
        for argv, kind, words in (
            (["/no/such"], NotFound, "cannot run '/no/such' in 'web': No such file"),
            (["/etc/passwd"], Conflict, "Permission denied"),
        ):
            with pytest.raises(kind, match=words):
                await collect(await agent.begin(run(*argv)))
        with pytest.raises(Unsupported, match="gives commands no terminal"):
            await agent.begin(agent_api.ExecRequest(["sh"], tty=True))
        with pytest.raises(Conflict, match="4 MiB of input at most"):
            await collect(await agent.begin(run("cat")), bytes(qga_commands.MOST_INPUT + 1))


async def test_signals_and_callers_that_go(stand_in: StandIn) -> None:
    async with linked(stand_in) as agent:
        command = await agent.begin(run("sleep", "1000"))
        await command.end_input()
        ending = asyncio.create_task(command.output())
        await until(lambda: bool(stand_in._running))
        await command.signal(15)
        assert await ending is None
        assert ended(command) == agent_api.AgentEnded(143, 15)
        abandoned = await agent.begin(run("sleep", "1001"))
        await abandoned.end_input()
        waiting = asyncio.create_task(abandoned.output())
        await until(lambda: len(stand_in._running) == 3)
        waiting.cancel()
        await asyncio.wait((waiting,))
        await abandoned.abandon()
        (last,) = (each for each in stand_in._running.values() if each.returncode is None or each.returncode == -1)
        assert await last.wait() == -1
        never = await agent.begin(run("touch", "/nowhere/at/all"))
        await never.abandon()
        assert never.over
        assert await collect(await agent.begin(run("echo", "on"))) == (0, b"on\n", b"")


async def test_files(stand_in: StandIn, tmp_path: Path) -> None:
    path = tmp_path / "file"
    async with linked(stand_in) as agent:
        assert await collect(await agent.begin(agent_api.WriteFileRequest(str(path), 0o750)), MUCH) == (0, b"", b"")
        assert (path.read_bytes(), path.stat().st_mode & 0o777) == (MUCH, 0o750)
        read = await agent.begin(agent_api.ReadFileRequest(str(path)))
        assert (read.started or b"")[:2] == (0o750).to_bytes(2, "little")
        assert (read.started or b"")[8:] == len(MUCH).to_bytes(8, "little")
        assert await collect(read) == (0, MUCH, b"")
        # Its mode stays when it is replaced.
        await collect(await agent.begin(agent_api.WriteFileRequest(str(path), 0o600)), b"x")
        assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"x", 0o750)
        for request, kind, words in (
            (agent_api.ReadFileRequest("/no/such"), NotFound, "cannot read /no/such in 'web': No such file"),
            (agent_api.ReadFileRequest(str(tmp_path)), Conflict, "Is a directory"),
            (agent_api.WriteFileRequest(str(tmp_path)), Conflict, "cannot write .* Is a directory"),
        ):
            with pytest.raises(kind, match=words):
                await agent.begin(request)
        with pytest.raises(Conflict, match="No space left"):
            await collect(await agent.begin(agent_api.WriteFileRequest("/dev/full")), b"x")
        gone = await agent.begin(agent_api.ReadFileRequest(str(path)))
        await gone.abandon()
        assert stand_in._files == {}


async def test_what_else_xend_asks(stand_in: StandIn) -> None:
    async with linked(stand_in) as agent:
        await agent.freeze_files()
        assert stand_in.frozen
        before = time.time_ns()
        stand_in.answers["guest-exec"], stand_in.answers["guest-exec-status"] = (
            {"pid": 7},
            {"exited": True, "exitcode": 0},
        )
        await agent.wake()
        assert not stand_in.frozen
        ((command, words),) = stand_in.told
        assert command == "guest-set-time"
        assert before <= words["time"] <= time.time_ns()
        stand_in.forbidden = {"guest-set-time"}  # then a command sets it
        await agent.wake()
        stand_in.answers["guest-exec-status"] = {"exited": True, "exitcode": 1}
        with pytest.raises(Unsupported, match="may not do that"):
            await agent.wake()
        stand_in.told.clear()
        stand_in.answers["guest-get-vcpus"] = [
            {"logical-id": number, "online": number != 3, "can-offline": number > 0} for number in range(4)
        ]
        stand_in.answers["guest-set-vcpus"] = 1
        await agent.use_vcpus(3)
        await agent.use_vcpus(2)
        with pytest.raises(EngineError, match="only some"):
            await agent.use_vcpus(1)
        await agent.shut_down("halt")
        await agent.shut_down("reboot")
        await until(lambda: len(stand_in.told) == 2)
        assert [words["mode"] for _, words in stand_in.told] == ["powerdown", "reboot"]
        stand_in.answers["guest-network-get-interfaces"] = [
            {"name": "lo", "ip-addresses": [{"ip-address": "127.0.0.1", "prefix": 8}]},
            {
                "name": "eth0",
                "hardware-address": "52:54:00:00:00:01",
                "ip-addresses": [
                    {"ip-address": "10.0.2.15", "prefix": 24},
                    {"ip-address": "fe80::1", "prefix": 64},
                    {"ip-address": "no address", "prefix": 64},
                    "nonsense",
                ],
            },
            {"name": "\x1b[2J", "hardware-address": "nonsense"},
            7,
        ]
        assert await agent.interfaces() == [
            agent_api.GuestInterface("eth0", "52:54:00:00:00:01", ["10.0.2.15/24", "fe80::1/64"]),
            agent_api.GuestInterface("?[2J"),
        ]


async def test_an_agent_that_may_not_says_so(stand_in: StandIn, tmp_path: Path) -> None:
    stand_in.forbidden = {"guest-exec"}
    async with linked(stand_in) as agent:
        with pytest.raises(Unsupported, match=r"may not do that.*disabled") as caught:
            await collect(await agent.begin(run("true")))
        assert "qemu-ga.conf" in str(caught.value.hint)
        await collect(await agent.begin(agent_api.WriteFileRequest(str(tmp_path / "file"), 0o600)), b"x")
        assert (tmp_path / "file").read_bytes() == b"x"


async def test_a_guest_that_does_not_keep_to_it(stand_in: StandIn) -> None:
    stand_in.noise = b'\xff{"return": 5}\n\xff[[[\n' + b"x" * 100_000 + b'\n{"return": {}}\n'
    async with linked(stand_in) as agent:
        stand_in.answers["guest-exec"] = {"pid": "seven"}
        with pytest.raises(EngineError, match="makes no sense"):
            await collect(await agent.begin(run("true")))
        stand_in.answers["guest-exec"] = "x" * (2 << 20)
        with pytest.raises(EngineError, match="too great length"):
            await collect(await agent.begin(run("true")))
        assert agent.broken
        with pytest.raises(EngineError, match="too great length"):
            await agent.interfaces()
    stand_in.noise = b""
    async with linked(stand_in) as agent:
        stand_in.silent = True
        with pytest.raises(Unavailable, match="did not answer guest-info"):
            await agent._link.ask("guest-info", timeout_s=0.05)
        assert agent.broken


async def test_no_agent_at_all() -> None:
    host, _guest = socket.socketpair()
    host.setblocking(False)
    with pytest.raises(TimeoutError):
        await QgaLink.open("web", host, 0.05)
    _guest.close()


@given(st.lists(st.binary(max_size=200), max_size=20), st.binary(max_size=100))
async def test_any_bytes_are_an_answer_an_error_or_nothing(pieces: list[bytes], rest: bytes) -> None:
    answers = Answers()
    answers.expect(5)
    for piece in pieces:
        if not answers.synced:
            assert answers.feed(piece) == [] or answers.synced
            assert len(answers._data) <= qga_lines._MOST_SYNC
    if not answers.synced:
        got = answers.feed(b'\n\xff{"return": 5}\n' + b'{"return": 7, "id": 1}\n')
        assert [(answer.id, answer.value) for answer in got] == [(1, 7)]
    with suppress(EngineError):
        answers.feed(rest + b"\n")


@given(st.integers(1, 40), st.binary(max_size=400))
async def test_answers_may_come_in_any_pieces(size: int, before: bytes) -> None:
    answers = Answers()
    answers.expect(123456)
    stream = before + b'\n\xff{"return": 123456}\n{"return": {"a": []}, "id": 1}\n\n{"error": {"desc": "no\\u0007"}}\n'
    got = []
    for at in range(0, len(stream), size):
        got += answers.feed(stream[at : at + size])
    assert [(answer.id, answer.value, answer.error) for answer in got] == [(1, {"a": []}, None), (None, None, "no?")]


def test_lines_without_end_are_not_kept() -> None:
    answers = Answers()
    answers.expect(1)
    for data in (b"x" * 10_000, DELIMITER + b"y" * 10_000, DELIMITER * 10_000):
        for _ in range(20):
            assert answers.feed(data) == []
            assert len(answers._data) <= qga_lines._MOST_SYNC
    answers.feed(b'\n\xff{"return": 1}\n')
    with pytest.raises(EngineError, match="too great length"):
        for _ in range(200):
            answers.feed(b"z" * 10_000)
    deep = Answers()
    with pytest.raises(EngineError, match="does not keep to its protocol"):
        deep.feed(b'{"return": ' + b"[" * 100_000 + b"\n")


class Port:
    """The socket of an agent of domain ``web``, with somebody at its other end."""

    def __init__(self, xend: Xend, kind: AgentKind) -> None:
        self.listening = socket.socket(fileno=listen(xend.process("web").directory, AGENTS[kind]))
        self.listening.setblocking(False)


async def test_ours_comes_first_and_qemus_in_its_place(boot: Boot, stand_in: StandIn) -> None:
    xend = await boot()
    await xend.domains.create(api.CreateRequest(describe()))
    ours, theirs = Port(xend, AgentKind.PYXEN), Port(xend, AgentKind.QEMU)
    server = await asyncio.start_unix_server(stand_in.serve, sock=theirs.listening)
    agents, process = xend.domains.agent, xend.process("web")
    stand_in.answers["guest-network-get-interfaces"] = [{"name": "eth0"}]
    assert xend.domains.get("web").agent is None
    assert (await agents.interfaces("web")).agent is None
    with pytest.raises(Unsupported, match="no agent answered"):
        await agents.begin("web", agent_api.ExecRequest(["echo", "hello"], wait_s=0.05))
    beginning = asyncio.create_task(agents.begin("web", agent_api.ExecRequest(["echo", "hello"], wait_s=60)))
    process.control("port qga-port open")
    assert (await collect(await beginning))[1] == b"hello\n"
    assert xend.domains.get("web").agent is AgentKind.QEMU
    found = await agents.interfaces("web")
    assert (found.agent, [each.name for each in found.interfaces]) == (AgentKind.QEMU, ["eth0"])
    # One that doesn't do what its power button says is told by its agent.
    await agents.shut_down(xend.life.registry.live[xend.life.registry.find("web").uuid], "poweroff")
    await until(lambda: stand_in.told == [("guest-shutdown", {"mode": "powerdown"})])

    process.control("port agent-port open")
    await until(lambda: xend.domains.get("web").agent is AgentKind.PYXEN)
    beginning = asyncio.create_task(agents.begin("web", agent_api.ExecRequest(["echo", "ours"], wait_s=60)))
    callers = []
    while not beginning.done():  # those that have hung up by now are in the queue as well
        with suppress(BlockingIOError):
            callers.append(start(ours.listening.accept()[0]))
        await asyncio.sleep(0.01)
    assert (await collect(await beginning))[1] == b"ours\n"
    process.control("port agent-port closed")
    process.control("port qga-port closed")
    await until(lambda: xend.domains.get("web").agent is None)
    agents.close()
    server.close()
    ours.listening.close()
    for caller in callers:
        assert await asyncio.to_thread(caller.wait, 60) is not None
    await settle()


async def test_a_deaf_guest_is_shut_down_by_its_agent(boot: Boot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyxen.xend.life._FIRST_REPEAT_S", 0.05)
    xend = await boot()
    await xend.domains.create(api.CreateRequest(describe(extra="fake.deaf")))
    told: list[str] = []

    async def tell(live: object, reason: str) -> None:
        told.append(reason)
        if len(told) == 1:
            raise Unsupported("no agent answered")
        xend.process("web").control("poweroff")

    xend.life.on_deaf[:] = [tell]
    await xend.domains.shutdown("web", "poweroff")
    await until(lambda: "domain-ended" in xend.kinds())
    assert told == ["poweroff", "poweroff"]


def test_errors_without_words(tmp_path: Path) -> None:
    answer = qga_lines._answer(b'{"error": 7}')
    error: PyxenError = qga_commands.refusal("web", None, QgaError(answer.error or "", answer.kind))
    assert str(error) == "QEMU's guest agent in 'web' says: it does not say why"


async def test_a_quiet_snapshot(boot: Boot, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    xend = await boot()
    await xend.domains.create(api.CreateRequest(describe()))
    monkeypatch.setattr("pyxen.xend.snapshots._AGENT_S", 0.05)
    with pytest.raises(Unsupported, match="file systems of 'web' can't be frozen: no way leads to an agent"):
        await xend.domains.snapshots.create("web", SnapshotRequest("none", quiesce=True))
    assert not xend.process("web").paused
    monkeypatch.undo()
    port = Port(xend, AgentKind.QEMU)
    server = await asyncio.start_unix_server(stand_in.serve, sock=port.listening)
    xend.process("web").control("port qga-port open")
    frozen: list[bool] = []
    freeze = FakeDomain.freeze

    async def look(domain: FakeDomain) -> None:
        frozen.append(stand_in.frozen)
        await freeze(domain)

    monkeypatch.setattr(FakeDomain, "freeze", look)
    await xend.domains.snapshots.create("web", SnapshotRequest("quiet", quiesce=True))
    assert (frozen, stand_in.frozen) == ([True], False)
    await xend.domains.snapshots.create("web", SnapshotRequest("loud"))
    assert frozen == [True, False]
    stand_in.forbidden = {"guest-fsfreeze-freeze"}
    with pytest.raises(Unsupported, match="can't be frozen: QEMU's guest agent in 'web' may not do that"):
        await xend.domains.snapshots.create("web", SnapshotRequest("forbidden", quiesce=True))
    assert [each.name for each in xend.domains.snapshots.listed().snapshots] == ["quiet", "loud"]
    # What an xend that died meanwhile has left frozen goes on when its guest is told the time.
    stand_in.frozen = True
    await xend.domains.agent.tell_restored(xend.life.registry.live[xend.life.registry.find("web").uuid])
    assert not stand_in.frozen
    xend.domains.agent.close()
    server.close()
    await settle()

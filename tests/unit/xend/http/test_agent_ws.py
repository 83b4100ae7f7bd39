"""Commands and files from a client's call to an agent: uvicorn between them, the agent a process of this machine."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from starlette.types import ASGIApp
from websockets.asyncio.client import unix_connect

from pyxen import agent_api, client, run_api
from pyxen.client import AsyncClient, Client, DomainNotFound
from pyxen.errors import Conflict, NotFound, Unsupported
from tests.unit.xend.agents import linked, until
from tests.unit.xend.http.fake_core import FakeCore
from tests.unit.xend.http.server import Address, serving

pytestmark = pytest.mark.anyio
MUCH = os.urandom(1 << 20) * 4


@pytest.fixture
async def address(app: ASGIApp, core: FakeCore, tmp_path: Path) -> AsyncIterator[Address]:
    core.add("web")
    async with linked() as (link, _), serving(app, tmp_path) as address:
        core.agent.link = link
        yield address


@pytest.fixture
def there(address: Address) -> client.Address:
    return client.Address(socket=address.unix)


async def test_much_goes_both_ways_at_once(there: client.Address) -> None:
    """More than all buffers on the way hold, so that each side must read while it writes."""
    with Client(there) as xend:
        result = await asyncio.to_thread(xend.exec, "web", ["cat"], stdin=MUCH)
    assert result == agent_api.ExecResult(0, MUCH, b"")
    async with AsyncClient(there) as xend_async:
        assert await xend_async.exec("web", ["cat"], stdin=MUCH) == result


async def test_a_commands_surroundings_and_end(there: client.Address, tmp_path: Path) -> None:
    script = 'echo "$COLOUR"; pwd; echo no >&2; exit 4'
    async with AsyncClient(there) as xend:
        result = await xend.exec("web", ["sh", "-c", script], env={"COLOUR": "red"}, cwd=str(tmp_path))
        assert result == agent_api.ExecResult(4, f"red\n{tmp_path}\n".encode(), b"no\n")
        assert (await xend.exec("web", ["sh", "-c", "kill -2 $$"])).status == 130
        # Input that is not read is no error, however much it is.
        assert (await xend.exec("web", ["true"], stdin=MUCH)).status == 0


async def test_files(there: client.Address, tmp_path: Path) -> None:
    path = str(tmp_path / "file")
    with Client(there) as xend:
        await asyncio.to_thread(xend.write_file, "web", path, MUCH, mode=0o600)
        assert Path(path).stat().st_mode & 0o777 == 0o600
        assert await asyncio.to_thread(xend.read_file, "web", path) == MUCH
        with pytest.raises(NotFound, match=f"cannot read {path}x in 'web': No such file"):
            await asyncio.to_thread(xend.read_file, "web", f"{path}x")
        with pytest.raises(Conflict, match="No space left"):
            await asyncio.to_thread(xend.write_file, "web", "/dev/full", b"x")


async def test_refusals(there: client.Address, core: FakeCore) -> None:
    async with AsyncClient(there) as xend:
        with pytest.raises(DomainNotFound):
            await xend.exec("nobody", ["true"])
        with pytest.raises(NotFound, match="cannot run 'no-such-command' in 'web'"):
            await xend.exec("web", ["no-such-command"])
        core.agent.link = None
        with pytest.raises(Unsupported, match=r"no agent answered in 'web' within 0\.5 s"):
            await xend.exec("web", ["true"], wait_s=0.5)


def socket(address: Address) -> Any:
    return unix_connect(str(address.unix), uri="ws://xend/v1/domains/web/agent", close_timeout=0.1)


@pytest.mark.parametrize(
    "said", ["{}", "no JSON", '{"do":"exec","argv":[]}', '{"do":"exec","argv":["a\\u0000b"]}', b"x"]
)
async def test_what_is_no_request_is_refused(address: Address, said: str | bytes) -> None:
    async with socket(address) as connection:
        await connection.send(said)
        assert json.loads(await connection.recv())["error"]["code"] == "invalid-request"


async def test_what_is_no_message_ends_the_command(address: Address) -> None:
    async with socket(address) as connection:
        await connection.send('{"do":"exec","argv":["cat"]}')
        assert "started" in json.loads(await connection.recv())
        await connection.send('{"signal":1000}')
        assert json.loads(await connection.recv())["error"]["code"] == "invalid-request"


async def test_a_client_that_goes_away_hangs_up_on_its_command(address: Address, core: FakeCore) -> None:
    async with socket(address) as connection:
        await connection.send('{"do":"exec","argv":["sleep","600"]}')
        pid = json.loads(await connection.recv())["started"]["pid"]
        assert Path(f"/proc/{pid}").exists()
    await until(lambda: not Path(f"/proc/{pid}").exists())


def run_socket(address: Address) -> Any:
    return unix_connect(str(address.unix), uri="ws://xend/v1/run", close_timeout=0.1)


async def test_a_command_with_a_domain_of_its_own(there: client.Address, core: FakeCore, tmp_path: Path) -> None:
    request = run_api.RunRequest(agent_api.ExecRequest(["sh", "-c", "cat; pwd; exit 4"], cwd=str(tmp_path)))
    told: list[agent_api.AgentEvent] = []
    with Client(there) as xend:
        command = await asyncio.to_thread(xend.sandbox, request, told.append)
        assert core.sandboxes.names == ["run-0"]
        result = await asyncio.to_thread(command.finish, [b"typed\n"])
        command.close()
    assert result == agent_api.ExecResult(4, f"typed\n{tmp_path}\n".encode(), b"")
    assert not core.sandboxes.names
    assert told[0].step == "Unpacking the kernel"
    assert told[1].running is not None and told[1].running.name == "run-0"
    async with AsyncClient(there) as xend_async:
        assert (await xend_async.run(request, b"x\n")).stdout == f"x\n{tmp_path}\n".encode()
        with pytest.raises(NotFound, match="no kernel 'none'"):
            await xend_async.run(run_api.RunRequest(request.command, kernel="none"))
        with pytest.raises(NotFound, match="cannot run 'no-such-command'"):
            await xend_async.run(run_api.RunRequest(agent_api.ExecRequest(["no-such-command"])))


async def test_a_client_that_goes_away_ends_its_domain(address: Address, core: FakeCore) -> None:
    async with run_socket(address) as connection:
        await connection.send('{"command":{"argv":["sleep","600"]}}')
        while "started" not in json.loads(await connection.recv()):
            pass
        assert core.sandboxes.names
    await until(lambda: not core.sandboxes.names)


async def test_what_is_no_run_is_refused(address: Address) -> None:
    for said in ("{}", '{"command":{"argv":[]}}', '{"command":{"argv":["a"]},"rw":[""]}'):
        async with run_socket(address) as connection:
            await connection.send(said)
            assert json.loads(await connection.recv())["error"]["code"] == "invalid-request"

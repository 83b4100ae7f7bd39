"""A trace on its way through xend: passed on line by line, ended with the domain, refused in the hypervisor's words."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pyxen.api import ShutdownReason
from pyxen.config.model import DomainConfig
from pyxen.engine.contract import DomainSpec, Stopped
from pyxen.engine.domain import ProcessDomain
from pyxen.engine.trace import follow
from pyxen.errors import Conflict, EngineError, InvalidRequest, Unsupported

pytestmark = pytest.mark.anyio
ORDER = b'{"execute":"trace","arguments":{"only":["port"]}}\n'
ACCEPTED = b'{"return":{}}\n'
SPEC = DomainSpec(domid=3, uuid="0", config=DomainConfig(name="web"))


def domain(folder: Path, stopped: Stopped | None = None) -> ProcessDomain:
    found = SimpleNamespace(spec=SPEC, directory=folder, stopped=stopped)

    def on_stopped(callback: Callable[[Stopped], None]) -> None:
        found.stopped = Stopped(ShutdownReason.FAILED)
        callback(found.stopped)

    found.on_stopped = on_stopped
    return cast(ProcessDomain, found)


async def talk(folder: Path, *pieces: bytes) -> list[bytes]:
    """What comes out where the hypervisor says ``pieces``."""

    served = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readline() == ORDER
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.01)
        writer.close()
        await writer.wait_closed()
        served.set()

    server = await asyncio.start_unix_server(serve, folder / "control.sock")
    async with server:
        try:
            return [chunk async for chunk in await follow(domain(folder), ["port"])]
        finally:
            await served.wait()


async def test_whole_lines_are_passed_on(tmp_path: Path) -> None:
    found = await talk(tmp_path, ACCEPTED, b'{"kind":"a"}\n{"ki', b'nd":"b"}\n', b'{"kind":"end","name":"reboot"}\n')
    assert all(chunk.endswith(b"\n") for chunk in found)
    assert b"".join(found) == b'{"kind":"a"}\n{"kind":"b"}\n{"kind":"end","name":"reboot"}\n'


async def test_a_process_that_dies_in_the_middle_gets_its_end_from_xend(tmp_path: Path) -> None:
    found = await talk(tmp_path, ACCEPTED, b'{"kind":"a"}\n{"ki')
    assert b"".join(found) == b'{"kind":"a"}\n{"kind":"end","name":"failed"}\n'


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b'{"error":{"desc":"no such kind","code":"invalid-request"}}\n', InvalidRequest),
        (b'{"error":{"desc":"no such kind"}}\n', EngineError),
        (b"nonsense\n", EngineError),
        (b"", EngineError),
    ],
)
async def test_refusals(tmp_path: Path, answer: bytes, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        await talk(tmp_path, answer)


async def test_a_domain_that_cannot_be_traced(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="does not answer"):
        await follow(domain(tmp_path), [])
    with pytest.raises(Conflict, match="stopped"):
        await follow(domain(tmp_path, Stopped(ShutdownReason.CRASH)), [])
    qemu: Any = SimpleNamespace(spec=SPEC)
    with pytest.raises(Unsupported, match="QEMU runs 'web'"):
        await ProcessDomain.trace(qemu, [])

"""Domains of ``xm run``: described, and ended whatever happens."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from pyxen import agent_api, api, run_api
from pyxen.config.model import DomainConfig, DomainType, EngineChoice, Share
from pyxen.engine.fake import FakeEngine
from pyxen.errors import EngineError, InvalidRequest, Unavailable, Unsupported
from pyxen.image import sandbox
from pyxen.xend.sandboxes import ENDS_WITH_ITS_COMMAND
from tests.unit.xend.conftest import Xend, describe

pytestmark = pytest.mark.anyio
Boot = Callable[..., Awaitable[Xend]]
COMMAND = agent_api.ExecRequest(["true"])


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> sandbox.Boot:
    """What is found, whatever is asked for: an engine that only pretends boots no kernel."""
    for name in ("bzImage", "ramdisk"):
        (tmp_path / name).write_bytes(b"x")
    found = sandbox.Boot(tmp_path / "bzImage", "6.1", False, tmp_path / "ramdisk", tmp_path / "modules", None)
    monkeypatch.setattr(sandbox, "ready", lambda name, kernels: found)
    monkeypatch.setattr(FakeEngine, "name", "qemu")
    return found


async def quiet(step: str) -> None:
    raise AssertionError(step)


async def test_it_is_a_domain_until_its_context_ends(boot: Boot, kernel: sandbox.Boot, tmp_path: Path) -> None:
    xend = await boot()
    request = run_api.RunRequest(COMMAND, rw=[str(tmp_path)], memory=300, verbose=True)
    async with xend.domains.sandboxes.open(request, quiet) as opened:
        config: DomainConfig = xend.life.registry.find(opened.running.name).config
        assert (config.type, config.engine, config.memory) == (DomainType.HVM, EngineChoice.QEMU, 300)
        assert config.p9 == (
            Share(tag="host", path="/", readonly=True),
            Share(tag="modules", path=str(kernel.modules), readonly=True),
            Share(tag="rw0", path=str(tmp_path)),
        )
        words = (config.cmdline or "").split()
        assert f"pyxen.mount=rw0:{base64.b64encode(str(tmp_path).encode()).decode()}" in words
        assert f"hostname={opened.running.name}" in words and "quiet" not in words
    assert not xend.life.registry.records
    assert not list((xend.life.roots.state / "console").iterdir())


async def test_a_cancelled_one_ends_too(boot: Boot, kernel: sandbox.Boot) -> None:
    xend = await boot()
    there = asyncio.Event()

    async def run() -> None:
        async with xend.domains.sandboxes.open(run_api.RunRequest(COMMAND), quiet):
            there.set()
            await asyncio.sleep(60)

    running = asyncio.create_task(run())
    await there.wait()
    running.cancel()
    await asyncio.wait([running])
    assert running.cancelled()
    assert not xend.life.registry.records


async def test_a_later_xend_ends_it(boot: Boot) -> None:
    xend = await boot()
    await xend.domains.create(api.CreateRequest(describe("run-0")))
    await xend.life.records.change(xend.life.registry.find("run-0"), intended=ENDS_WITH_ITS_COMMAND)
    await xend.die()
    later = await boot()
    await later.life.settle()
    assert not later.life.registry.records
    assert not list((later.life.roots.state / "console").iterdir())


async def test_the_guests_end_is_told_with_its_last_words(boot: Boot, kernel: sandbox.Boot) -> None:
    xend = await boot()
    with pytest.raises(EngineError) as caught:
        async with xend.domains.sandboxes.open(run_api.RunRequest(COMMAND), quiet) as opened:
            process = xend.process(opened.running.name)
            (process.directory / "console.log").write_text("a\nKernel panic - not syncing: x\nCall Trace:\n")
            (process.directory / "fake.ctl").write_text("crash\n")
            raise Unavailable("the agent has gone")
    assert caught.value.message.splitlines() == [
        "the guest's kernel has crashed",
        "The kernel's last words:",
        "Kernel panic - not syncing: x",
        "Call Trace:",
    ]
    with pytest.raises(EngineError, match="did not get as far as running a command"):
        async with xend.domains.sandboxes.open(run_api.RunRequest(COMMAND), quiet):
            raise Unsupported("no agent answered")
    assert not xend.life.registry.records


@pytest.mark.parametrize(("rw", "reason"), [(["/"], "whole file tree"), (["/" + "x" * 1500], "too long names")])
async def test_folders_that_cannot_be_changed(boot: Boot, kernel: sandbox.Boot, rw: list[str], reason: str) -> None:
    xend = await boot()
    with pytest.raises(InvalidRequest, match=reason):
        async with xend.domains.sandboxes.open(run_api.RunRequest(COMMAND, rw=rw), quiet):
            pass
    assert not xend.life.registry.records


async def test_the_xen_engine_has_no_9pfs(boot: Boot) -> None:
    xend = await boot()
    with pytest.raises(Unsupported, match="no 9pfs"):
        async with xend.domains.sandboxes.open(run_api.RunRequest(COMMAND, engine=EngineChoice.XEN), quiet):
            pass

"""Domains of ``xm run``: a kernel on the host's own files, for as long as one command runs."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from pyxen import agent_api, run_api
from pyxen.api import ShutdownReason
from pyxen.config.check import check
from pyxen.config.model import Action, DomainConfig, DomainType, EngineChoice, Share
from pyxen.engine.contract import RunningDomain
from pyxen.errors import EngineError, InvalidRequest, PyxenError, Unavailable, Unsupported
from pyxen.image import sandbox
from pyxen.xend.agent import Agents
from pyxen.xend.agent_contract import GuestCommand
from pyxen.xend.building import build, failure
from pyxen.xend.caches import prune_kernels
from pyxen.xend.finishing import to_the_end
from pyxen.xend.life import Life
from pyxen.xend.prepare import complete
from pyxen.xend.registry import now
from pyxen.xend.store import Origin, Phase, Record

ENDS_WITH_ITS_COMMAND = "run"
"""``Record.intended`` of such a domain: a later xend ends it, since whoever waited for its command has gone."""
_ROOT, _MODULES = "host", "modules"
_LAST_LINES = 12
_COMMAND_LINE = 1900
"""Bytes of the kernel's command line, of which Linux keeps 2047, that are ours: the monitor adds some."""

Tell = Callable[[str], Awaitable[None]]
"""Told of each step that takes its time."""


@dataclass(frozen=True, slots=True)
class Sandbox:
    """One of them, as long as it is there."""

    running: agent_api.Running
    begin: Callable[[], Awaitable[GuestCommand]]
    """Starts the command, as soon as the guest has booted. Raises as ``Agents.begin``."""


class Sandboxes:
    """Makes them, and ends them whatever happens."""

    def __init__(self, life: Life, agents: Agents) -> None:
        self._life = life
        self._agents = agents

    @contextlib.asynccontextmanager
    async def open(self, request: run_api.RunRequest, tell: Tell) -> AsyncIterator[Sandbox]:
        """A domain for the command; it ends with the context. Raises PyxenError.

        What is raised inside because the guest has ended is raised with the guest's last words.
        """
        if request.engine is EngineChoice.XEN:
            raise Unsupported(
                "the Xen engine has no 9pfs back end yet, so its domains can't have this host's files",
                hint="Leave --engine out: QEMU does it.",
            )
        boot = await self._boot(request.kernel, tell)
        config = complete(self._describe(request, boot))
        check(config)
        assert config.uuid is not None
        record = Record(uuid=config.uuid, name=config.name, config=config, created_at=now())
        async with self._life.registry.lock(record.uuid):
            await self._life.build(record, Origin.CREATE, paused=request.gdb, accept=_ends_with_its_command)
        problem: PyxenError | None = None
        try:
            live = self._life.records.running(record)
            running = agent_api.Running(
                domid=live.spec.domid,
                name=record.name,
                kernel=boot.release,
                gdb=live.process.info.gdb,
                symbols=str(boot.symbols) if boot.symbols and request.gdb else None,
            )
            yield Sandbox(running, lambda: self._agents.begin(record.uuid, request.command, patient=request.gdb))
        except (Unavailable, Unsupported) as error:
            problem = error
            if isinstance(error, Unavailable):  # the agent went first, xend hears of the guest's end any moment
                await self._settled(record)
        finally:
            reason, words = await to_the_end(self._end(record))
        if problem is not None:
            raise _explained(problem, reason, words)

    async def _boot(self, name: str | None, tell: Tell) -> sandbox.Boot:
        kernels = self._life.images.kernels
        if (boot := await asyncio.to_thread(sandbox.ready, name, kernels)) is not None:
            return boot
        words = ("kernel", name or sandbox.DEFAULT, "--kernels", str(kernels))
        async with contextlib.aclosing(build("getting the kernel ready", *words)) as steps:
            async for step in steps:
                if step.error is not None:
                    raise failure(step.error)
                if not step.done:
                    await tell(step.step)
        self._life.spawn(prune_kernels(self._life))
        boot = await asyncio.to_thread(sandbox.ready, name, kernels)
        if boot is None:
            raise EngineError("the kernel changed while it was being made ready", hint="Run this again.")
        return boot

    def _describe(self, request: run_api.RunRequest, boot: sandbox.Boot) -> DomainConfig:
        shares = [Share(tag=_ROOT, path="/", readonly=True)]
        mounts = []
        if boot.modules is not None:
            shares.append(Share(tag=_MODULES, path=str(boot.modules), readonly=True))
            mounts.append((_MODULES, f"/lib/modules/{boot.release}"))
        for number, folder in enumerate(request.rw):
            if folder == "/":
                raise InvalidRequest("the whole file tree can't be changed", hint="Name the folders that may be.")
            shares.append(Share(tag=f"rw{number}", path=folder))
            mounts.append((f"rw{number}", folder))
        name = self._free_name()
        # A panic that no device hears of ends the domain as well.
        words = [sandbox.CMDLINE, "panic=-1", f"hostname={name}", *(_mount(tag, folder) for tag, folder in mounts)]
        if not request.verbose:
            words.append("quiet")
        if request.gdb:
            words.append("nokaslr")
        cmdline = " ".join(words)
        if len(cmdline) > _COMMAND_LINE:
            raise InvalidRequest("the folders to be changed have too long names", hint="Name one that is above them.")
        return DomainConfig(
            name=name,
            type=DomainType.PVH if boot.pvh else DomainType.HVM,
            engine=EngineChoice.QEMU,
            memory=request.memory,
            vcpus=request.vcpus,
            kernel=str(boot.kernel),
            ramdisk=str(boot.ramdisk),
            cmdline=cmdline,
            p9=tuple(shares),
            gdb=request.gdb,
            vga="none" if not boot.pvh else "stdvga",
            on_poweroff=Action.DESTROY,
            on_reboot=Action.DESTROY,
            on_crash=Action.DESTROY,
            boot_timeout=0,
        )

    def _free_name(self) -> str:
        while self._life.registry.named(name := f"run-{secrets.token_hex(2)}") is not None:
            pass
        return name

    async def _settled(self, record: Record) -> None:
        """Wait, for a moment, until xend has dealt with the end of the guest."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2):
                while self._life.registry.records.get(record.uuid) is not None:
                    async with self._life.registry.lock(record.uuid):
                        pass
                    await asyncio.sleep(0.05)

    async def _end(self, record: Record) -> tuple[ShutdownReason | None, str]:
        """End the domain if it is still there; why it had ended by itself, and its last words."""
        ended = record.last_reason
        async with self._life.registry.lock(record.uuid):
            return ended, await finish(self._life, record)


async def finish(life: Life, record: Record) -> str:
    """End such a domain, if it is still there, with its lock held; leaves nothing of it. Returns its last words."""
    if life.registry.records.get(record.uuid) is record and record.phase is Phase.RUNNING:
        await life.end(record, ShutdownReason.DESTROYED)
    try:
        return await asyncio.to_thread(_take, life.roots.state / "console" / f"{record.name}.log")
    except OSError:
        return ""


async def _ends_with_its_command(process: RunningDomain) -> str:
    return ENDS_WITH_ITS_COMMAND


def _mount(tag: str, folder: str) -> str:
    """What the ramdisk takes from the kernel's command line."""
    return f"pyxen.mount={tag}:{base64.b64encode(folder.encode(errors='surrogateescape')).decode()}"


def _take(path: Path) -> str:
    text = path.read_bytes().decode(errors="replace")
    path.unlink()
    return text


def _explained(problem: PyxenError, reason: ShutdownReason | None, words: str) -> PyxenError:
    """The problem in terms of the guest, with the end of what it has said."""
    lines = [line.rstrip() for line in words.splitlines() if line.strip()]
    panic = next((number for number, line in enumerate(lines) if "Kernel panic" in line), None)
    lines = lines[-_LAST_LINES:] if panic is None else lines[panic : panic + _LAST_LINES]
    said = "\n".join(["", "The kernel's last words:", *lines]) if lines else ""
    match reason:
        case None if isinstance(problem, Unsupported):
            return EngineError(f"the guest did not get as far as running a command{said}", hint="-v shows all it says.")
        case None:
            return problem
        case ShutdownReason.CRASH:
            return EngineError(f"the guest's kernel has crashed{said}")
        case _:
            return EngineError(f"the guest has stopped ({reason.value}){said}")

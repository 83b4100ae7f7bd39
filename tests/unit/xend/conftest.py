"""A xend without HTTP and without guests: the real core on the stand-in engine."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from pyxen.config.model import DomainConfig, DomainType
from pyxen.engine.fake import FakeDomain, FakeEngine
from pyxen.engine.inotify import Inotify
from pyxen.image.store import ImageStore
from pyxen.paths import Roots
from pyxen.xend.daemon import make_folders
from pyxen.xend.domains import Domains
from pyxen.xend.events import Events
from pyxen.xend.life import Life
from pyxen.xend.log import open_log
from pyxen.xend.migration import Migration
from pyxen.xend.recover import recover
from pyxen.xend.settings import Settings
from pyxen.xend.store import Store


class Xend:
    """One life of a daemon; ``die`` leaves everything as SIGKILL would."""

    def __init__(self, life: Life, domains: Domains) -> None:
        self.life = life
        self.domains = domains
        self._seen: list[str] = []
        life.events.on(lambda event: self._seen.append(event.kind))

    def process(self, ref: str) -> FakeDomain:
        process = self.life.registry.live[self.life.registry.find(ref).uuid].process
        assert isinstance(process, FakeDomain)
        return process

    async def die(self) -> None:
        for waiter in self.domains.snapshots.waiting.abandon():
            waiter.process.close()
        for live in self.life.registry.live.values():
            live.cancel()
            live.process.close()
            live.console.close("")
        await self.life.store.close()
        self.life.inotify.close()

    async def end(self) -> None:
        """End all domains, and then itself."""
        for record in list(self.life.registry.records.values()):
            if record.domid is not None:
                await self.domains.destroy(record.uuid)
        await self.domains.snapshots.waiting.close()
        await self.life.settle()
        await self.die()

    def kinds(self) -> list[str]:
        """What has happened, in order."""
        return self._seen


@pytest.fixture
def roots() -> Iterator[Roots]:
    root = Path(tempfile.mkdtemp(prefix="pyxen-unit-"))
    root.chmod(0o711)
    yield Roots(state=root / "state", run=root / "run")
    shutil.rmtree(root)


async def start_xend(roots: Roots, **settings: float) -> Xend:
    """A xend on ``roots``, as its process would come up."""
    make_folders(roots)
    store = Store(roots.database)
    await store.open()
    log, ring = open_log(roots.log)
    inotify = Inotify()
    life = Life(
        roots=roots,
        settings=Settings(**{"clones_waiting": 0, **settings}),  # type: ignore[arg-type]
        store=store,
        events=Events(first=1),
        engines=[FakeEngine(roots.state, inotify)],
        inotify=inotify,
        images=ImageStore(roots.images, roots.kernels),
        log=log,
    )
    migration = Migration(life)
    await recover(life, migration)
    return Xend(life, Domains(life, ring, migration))


@pytest.fixture
async def boot(roots: Roots) -> AsyncIterator[Callable[..., Awaitable[Xend]]]:
    """Start a xend on the test's root; ends, at the end, whatever any of them started."""
    alive: list[Xend] = []

    async def start(**settings: float) -> Xend:
        alive.append(await start_xend(roots, **settings))
        return alive[-1]

    yield start
    await alive[-1].end()


def describe(name: str = "web", **keys: object) -> DomainConfig:
    """A domain that needs no files."""
    return DomainConfig(name=name, type=DomainType.HVM, **keys)  # type: ignore[arg-type]

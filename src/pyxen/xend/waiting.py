"""Processes that wait to become clones: started in advance from a snapshot's template, loaded, and standing still.

One that waits is all that a clone is, but for its name: it has a domain id, a folder, a UUID, MACs and copies of the
disks of its own. No domain has that id before somebody takes it, so a later xend ends its process and removes its
folder as it does with anything that no record owns. Its disks have names of their own, ``+waiting+ID-…``; when it is
taken they get the clone's names too, and lose the others once it runs. A later xend removes what still has such a
name, under the clone's name as well if there is no such domain.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from pyxen.config.model import DomainConfig
from pyxen.engine.contract import DomainSpec, RunningDomain, Stopped, Waking
from pyxen.engine.template import Template
from pyxen.errors import PyxenError, ResourceExhausted
from pyxen.xend.belongings import respelled, root_layer, variables
from pyxen.xend.copies import name_taken
from pyxen.xend.finishing import to_the_end
from pyxen.xend.host import read_memory
from pyxen.xend.life import Life
from pyxen.xend.saved import Head
from pyxen.xend.steps import reached
from pyxen.xend.store import Record

PREFIX = "+waiting+"
"""What the names of those begin with that wait, before the domain's id."""
_REST_S = 0.3
"""After a clone, before the next one is started: until then the new guest has the host to itself."""
_LOOK_S = 5.0
_MOST = 8
"""Of all snapshots together."""


@dataclass(slots=True, kw_only=True, eq=False)
class Waiter:
    """One that waits."""

    process: RunningDomain
    engine: str
    spec: DomainSpec
    config: DomainConfig
    """Its description, under the name that it waits by."""
    files: list[Path]
    """Its own."""
    warnings: list[str]


@dataclass(slots=True)
class _Queue:
    """Those of one snapshot."""

    ready: list[Waiter] = field(default_factory=list)
    next: asyncio.Task[None] | None = None
    resting: bool = False


class Waiting:
    """All that wait, by their snapshots' folders."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self._queues: dict[Path, _Queue] = {}
        self._looking: asyncio.TimerHandle | None = None

    @property
    def count(self) -> int:
        return sum(len(queue.ready) for queue in self._queues.values())

    def soon(self, folder: Path, make: Callable[[], Awaitable[Waiter | None]]) -> None:
        """Have as many wait as the settings say, after a short rest; what can't be had is done without."""
        queue = self._queues.setdefault(folder, _Queue())
        if queue.next is None or queue.next.done():
            queue.next = asyncio.create_task(self._fill(queue, make))

    async def take(self, folder: Path) -> Waiter | None:
        """The one that has waited longest, or that is just being made; it is the caller's from now on."""
        if (queue := self._queues.get(folder)) is None:
            return None
        if queue.next is not None and not queue.ready:
            if queue.resting:
                queue.next.cancel()
            await asyncio.wait([queue.next])
        while queue.ready:
            waiter = queue.ready.pop(0)
            if waiter.process.stopped is None:
                return waiter
            await self.end(waiter)
        return None

    async def drop(self, folder: Path) -> None:
        """End those of a snapshot."""
        if (queue := self._queues.pop(folder, None)) is None:
            return
        if queue.next is not None:
            queue.next.cancel()
            await asyncio.wait([queue.next])
        while queue.ready:
            await self.end(queue.ready.pop())

    async def close(self) -> None:
        """End all of them."""
        if self._looking is not None:
            self._looking.cancel()
        for folder in list(self._queues):
            await self.drop(folder)

    def abandon(self) -> list[Waiter]:
        """Let go of all of them as they are: a later xend ends them."""
        found = [waiter for queue in self._queues.values() for waiter in queue.ready]
        self._queues.clear()
        return found

    async def end(self, waiter: Waiter) -> None:
        """End one that is nobody's; nothing is left of it."""
        await waiter.process.destroy()
        waiter.process.close()
        await asyncio.to_thread(self._life.sweep, self._life.directory(waiter.spec.domid))
        for path in waiter.files:
            path.unlink(missing_ok=True)

    async def _fill(self, queue: _Queue, make: Callable[[], Awaitable[Waiter | None]]) -> None:
        queue.resting = True
        try:
            await asyncio.sleep(_REST_S)
        finally:
            queue.resting = False
        try:
            while len(queue.ready) < self._life.settings.clones_waiting and self.count < _MOST and self._roomy():
                if (waiter := await make()) is None:
                    return
                queue.ready.append(waiter)
                waiter.process.on_stopped(functools.partial(self._lost_soon, queue, waiter))
                self._look_later()
        except PyxenError as error:
            self._life.log.info("nothing waits for the next clone", why=str(error))
        except Exception:
            self._life.log.exception("nothing waits for the next clone")

    def _lost_soon(self, queue: _Queue, waiter: Waiter, _stopped: Stopped) -> None:
        self._life.spawn(self._lost(queue, waiter))

    async def _lost(self, queue: _Queue, waiter: Waiter) -> None:
        """One has ended by itself."""
        if waiter in queue.ready:
            queue.ready.remove(waiter)
            self._life.log.warning("what waited for the next clone has ended", domid=waiter.spec.domid)
            await self.end(waiter)

    def _roomy(self) -> bool:
        return read_memory().get("MemAvailable", 0) >= self._life.settings.balloon_low_mib

    def _look_later(self) -> None:
        if self._looking is None:
            self._looking = asyncio.get_running_loop().call_later(_LOOK_S, self._look)

    def _look(self) -> None:
        """Give their memory back when the host runs short of it."""
        self._looking = None
        if not self._roomy():
            for folder in list(self._queues):
                self._life.spawn(self.drop(folder))
        elif self.count:
            self._look_later()


async def start(
    life: Life, config: DomainConfig, domid: int, files: list[Path], head: Head, template: Template, waking: Waking
) -> Waiter:
    """Start one of this description and id, which has its disks. Raises PyxenError; its files are the caller's then."""
    chosen, warnings = await asyncio.to_thread(life.choose, config, head.engine)
    prepared = await life.prepare(config)
    directory = life.directory(domid)
    try:
        spec, directory = await life.lay_out(prepared, chosen, domid, head=head, waking=waking)
        process = await chosen.start(spec, directory, paused=True, template=template)
        reached("wait-started")
    except BaseException:
        await to_the_end(asyncio.to_thread(life.sweep, directory))
        for path in prepared.made:
            path.unlink(missing_ok=True)
        raise
    warnings += [*prepared.warnings, *process.info.warnings]
    return Waiter(process=process, engine=chosen.name, spec=spec, config=config, files=files, warnings=warnings)


async def become(
    life: Life, waiter: Waiter, record: Record, moved: Mapping[Path, Path], waking: Waking, *, paused: bool
) -> None:
    """Make a waiter the domain of ``record``, its files known as what they are ``moved`` to.

    Raises PyxenError; then nothing is left of either.
    """
    named: list[Path] = []
    record.domid = waiter.spec.domid
    try:
        life.registry.records[record.uuid] = record
        await life.store.begin_build(record, domid=waiter.spec.domid)
        reached("clone-noted")
        spec = respelled(waiter.spec, record.name, {str(old): str(new) for old, new in moved.items()})
        spec = msgspec.structs.replace(spec, waking=waking)
        await asyncio.to_thread(_rename, life, spec, moved, named)
        reached("clone-named")
        waiter.warnings += await life.place(record, waiter.process)
        await waiter.process.become(spec, paused=paused)
        reached("clone-woken")
        await life.keep(record, waiter.engine, None)
    except BaseException as error:
        await to_the_end(life.undo(record, None, waiter.process, error))
        for path in named:
            path.unlink(missing_ok=True)
        raise
    finally:
        for path in moved:
            path.unlink(missing_ok=True)
    life.hold(record, spec, waiter.process)
    life.tell("domain-started", record, paused=paused, engine=waiter.engine)


def _rename(life: Life, spec: DomainSpec, moved: Mapping[Path, Path], named: list[Path]) -> None:
    """Give files their new names, which come into ``named``, beside the old ones, and write it down. Blocking."""
    for old, new in moved.items():
        try:
            os.link(old, new)
        except FileExistsError:
            raise name_taken(new) from None
        except OSError as error:
            raise ResourceExhausted(f"{old} can't be named {new}: {error.strerror}") from error
        named.append(new)
        life.images.follow(old, new)
    life.write_spec(spec)


def sweep(life: Life) -> None:
    """Remove the files of those that waited when an earlier xend died, or were just being taken. Blocking."""
    owned = set(_owned(life))
    for folder in (life.roots.disks, variables("", life.roots).parent):
        for path in folder.glob(f"{PREFIX}*"):
            if path in owned:
                continue
            with contextlib.suppress(OSError):
                for other in folder.iterdir() if path.stat().st_nlink > 1 else ():
                    if other not in owned and other != path and other.samefile(path):
                        other.unlink()
                path.unlink()


def _owned(life: Life) -> Iterator[Path]:
    """The files of all domains that there are."""
    for record in life.registry.records.values():
        yield variables(record.name, life.roots)
        if record.config.image is not None:
            yield root_layer(record.name, record.config.image, life.roots)
        yield from (Path(disk.target) for disk in record.config.disk if disk.target)

"""Saving a domain's state to a file, and starting a domain from one.

The order of the steps makes SIGKILL harmless. Before the guest is stopped the record says what is being saved and
where (``intended``). The file gets its name only when it is whole and on the disk, and the domain ends only after
that. A xend that finds such a record looks for the file: if it is there the domain is ended, else it goes on. After a
checkpoint it goes on in any case.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import uuid as uuids
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from pyxen import api
from pyxen.api import ShutdownReason
from pyxen.config.model import DomainConfig
from pyxen.errors import Conflict, EngineError, InvalidRequest, PyxenError
from pyxen.xend import bound, saved
from pyxen.xend.life import Life
from pyxen.xend.part import name_part, open_part, part_path
from pyxen.xend.registry import Live, now
from pyxen.xend.steps import reached
from pyxen.xend.store import Origin, Phase, Record

SAVE, CHECKPOINT = "save", "checkpoint"
"""The first word of ``Record.intended`` while a domain is being saved; then ID, the guest's fate if it isn't ended
(go-on or stay), PATH."""
KINDS = (f"{SAVE} ", f"{CHECKPOINT} ")
"""How ``Record.intended`` begins where :func:`finish` knows what to do."""


class Saving:
    """Carries out saves and restores."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self._records = life.records

    async def save(self, ref: str, request: api.SaveRequest) -> api.SavedState:
        """Write the domain's state to a file; the domain ends, or goes on with ``checkpoint``.

        Raises PyxenError; then the domain goes on, and what was at the path before is still there.
        """
        record = self._records.changeable(ref, "save")
        path = Path(request.path)
        async with self._life.registry.lock(record.uuid):
            live = self._records.alive(record, "save")
            save_id = uuids.uuid4().hex
            head = await head_of(record, live, save_id)
            part = part_path(path, save_id)
            fd = await asyncio.to_thread(_make, part, path)
            before, was_still = record.intended, live.process.paused or live.process.suspended
            kind, after = CHECKPOINT if request.checkpoint else SAVE, "stay" if was_still else "go-on"
            try:
                await self._records.change(record, intended=f"{kind} {save_id} {after} {path}")
                reached("save-noted")
                await live.process.freeze()
                reached("save-frozen")
                size = await write_state(live, head, fd)
                reached("save-written")
                await asyncio.to_thread(_name, part, path)
                reached("save-named")
            except BaseException:
                with contextlib.suppress(OSError):
                    part.unlink()
                try:
                    await go_on(self._life, record, live, before, after)
                except PyxenError as error:  # what went wrong first is what the caller hears of
                    self._life.log.error("the domain doesn't go on", name=record.name, error=str(error))
                raise
            finally:
                os.close(fd)
            if request.checkpoint:
                try:
                    await go_on(self._life, record, live, before, after)
                except PyxenError as error:
                    raise EngineError(
                        f"'{record.name}' is saved to {path}, but doesn't go on: {error.message}",
                        hint=f"Try: xm unpause {record.name}",
                    ) from error
                reached("save-gone-on")
            else:
                await self._life.end(record, ShutdownReason.SUSPEND)
                reached("save-ended")
            self._life.tell("domain-saved", record, path=str(path), checkpoint=request.checkpoint)
        return api.SavedState(record.name, str(path), size)

    async def restore(self, request: api.RestoreRequest) -> tuple[Record, list[str]]:
        """Start a domain from a file. Raises PyxenError; then nothing of it is left, but the file."""
        path = Path(request.path)
        head, start = await asyncio.to_thread(saved.read_head, path)
        # All of it, before a monitor is given any: what is damaged must not be tried.
        await asyncio.to_thread(saved.read_state, path, start, lambda _piece: None)
        record = self._life.registry.records.get(head.config.uuid or "")
        if record is None:
            self._records.check_free(head.config.name, head.config.uuid)
            assert head.config.uuid is not None
            record = Record(
                uuid=head.config.uuid,
                name=head.config.name,
                config=head.config,
                created_at=now(),
                managed=head.managed,
                restart_count=head.restart_count,
            )
        async with self._life.registry.lock(record.uuid):
            if record.phase is not Phase.HALTED:
                raise Conflict(
                    f"Domain '{record.name}' exists already, with ID '{record.domid}'",
                    hint="It can be restored when it is gone: xm destroy ends it.",
                )
            warnings = await self._load(record, head, path, start, paused=request.paused)
            self._life.tell("domain-restored", record, path=str(path))
            self._life.restored(record)
        return record, warnings

    async def _load(self, record: Record, head: saved.Head, path: Path, start: int, *, paused: bool) -> list[str]:
        # It may have been renamed since: what it owns goes by its name.
        config = msgspec.structs.replace(head.config, name=record.name)
        async with reading(path, start) as state:
            return await self._life.build(record, Origin.START, paused=paused, config=config, state=state, head=head)


async def go_on(life: Life, record: Record, live: Live, intended: str | None, after: str) -> None:
    """Let a guest go on whose state was written, or can't be, unless it is to ``stay`` as it is."""
    try:
        if after == "go-on" and live.process.stopped is None:
            await live.process.thaw()
    finally:
        await life.records.change(record, intended=intended)


def is_whole(record: Record) -> bool:
    """Has an earlier xend saved this domain, so that only its end was left to be seen to?"""
    intended = record.intended or ""
    if not intended.startswith(f"{SAVE} "):
        return False
    _, save_id, _, path = intended.split(" ", 3)
    try:
        return saved.read_head(Path(path))[0].save_id == save_id
    except PyxenError:
        return False


async def finish(life: Life, record: Record) -> None:
    """End or undo a save that an earlier xend was about. The record's lock is held."""
    _, save_id, after, *rest = (record.intended or "").split(" ", 3)
    path = Path(rest[0])
    with contextlib.suppress(OSError):
        part_path(path, save_id).unlink()
    if await asyncio.to_thread(is_whole, record):
        await life.end(record, ShutdownReason.SUSPEND)
        return
    live = life.registry.live[record.uuid]
    life.log.warning("saving was cut short: the domain goes on", name=record.name, path=str(path))
    if after == "go-on" and live.process.stopped is None:
        await live.process.thaw()
    await life.records.change(record, intended=None)


async def head_of(record: Record, live: Live, save_id: str) -> saved.Head:
    """What is known of a running domain besides its state. Raises Unsupported where that can't be saved.

    Conflict for a clone whose guest has its source's addresses yet: whoever goes on from it would keep them.
    """
    if live.spec.waking is not None and live.spec.waking.macs:
        raise Conflict(
            f"the guest of '{record.name}' has not got its own addresses yet",
            hint="xend tells its agent, which may take a minute; see: xm log",
        )
    bound.check_state(live.spec.config)
    return saved.Head(
        version=saved.VERSION,
        save_id=save_id,
        engine=record.engine or "",
        machine=await live.process.machine(),
        slots=live.spec.slots,
        qga=live.spec.qga,
        config=_as_built(record, live),
        managed=record.managed,
        restart_count=record.restart_count,
    )


def _as_built(record: Record, live: Live) -> DomainConfig:
    """The description that gives the machine which the guest has now: it was made for most, and has what is online."""
    spec = live.spec
    vcpus = max(1, sum(vcpu.online for vcpu in live.process.statistics().vcpus))
    return msgspec.structs.replace(
        record.config,
        vcpus=vcpus,
        maxvcpus=spec.most_vcpus if spec.most_vcpus > vcpus else None,
        maxmem=spec.most_memory_mib if spec.most_memory_mib > record.config.memory else None,
    )


def _make(part: Path, path: Path) -> int:
    if path.is_dir():
        raise InvalidRequest(f"{path} is a folder", hint="Name a file in it.")
    return open_part(part, path)


def _name(part: Path, path: Path) -> None:
    name_part(part, path)
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise InvalidRequest(f"cannot write {path}: {error.strerror}") from error


async def write_state(live: Live, head: saved.Head, fd: int) -> int:
    """Have the monitor write, and the file take it; returns the file's length."""
    out, into = os.pipe2(os.O_CLOEXEC)

    def take() -> int:
        try:
            return saved.write(fd, head, out)
        finally:
            os.close(out)  # a monitor that goes on writing fails

    taking = asyncio.create_task(asyncio.to_thread(take))
    problem: BaseException | None = None
    try:
        await live.process.save_state(into)
    except BaseException as error:
        problem = error
    os.close(into)
    (size,) = await asyncio.gather(taking, return_exceptions=True)
    if isinstance(size, BaseException):  # a full disk, rather than the monitor's complaint that nobody reads
        raise size
    if problem is not None:
        raise problem
    return size


@contextlib.asynccontextmanager
async def reading(path: Path, start: int | None = None) -> AsyncIterator[int]:
    """A pipe from which a saved state can be read."""
    begin = saved.read_head(path)[1] if start is None else start
    out, into = os.pipe2(os.O_CLOEXEC)
    pump = asyncio.create_task(asyncio.to_thread(_pump, path, begin, into))
    try:
        yield out
    finally:
        os.close(out)  # whoever still writes sees that nobody reads
        await asyncio.gather(pump, return_exceptions=True)


def _pump(path: Path, start: int, into: int) -> None:
    def write(data: memoryview) -> None:
        while data:
            data = data[os.write(into, data) :]

    try:
        saved.read_state(path, start, write)
    finally:
        os.close(into)

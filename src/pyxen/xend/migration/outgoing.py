"""Sending a domain to another host.

It runs on exactly one side, whatever breaks. Up to the moment when ``given`` is written into the record, it is ours:
every failure lets it go on here. From then on it is the other side's, if that has accepted it: we ask until we know,
and only "it never arrived" lets it go on here. The other side starts the guest only after our Commit, and has then
written down that it has it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import time
import uuid as uuids
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, replace

import msgspec

from pyxen import api
from pyxen.api import ShutdownReason
from pyxen.engine.contract import Limits, Moving, Stopped
from pyxen.errors import Conflict, EngineError, PyxenError
from pyxen.xend import bound
from pyxen.xend.life import Life
from pyxen.xend.migration import disks, fit, wire
from pyxen.xend.migration.insist import insist
from pyxen.xend.migration.peers import Peers
from pyxen.xend.migration.wire import Link
from pyxen.xend.records import GIVEN, is_given
from pyxen.xend.registry import Live
from pyxen.xend.saving import head_of
from pyxen.xend.steps import reached
from pyxen.xend.store import Record

MIGRATE = "migrate "
"""How ``Record.intended`` begins while a domain is being sent; then ID, its fate here (go-on or stay), HOST and PORT.
As soon as the other side may have it, it begins with GIVEN.
"""
_LAST_S = 5.0
_THAW_S = 20.0
_START_S = 180
_UNDER_WAY_BYTES = 32 << 20
"""More than all the buffers on the way hold: when so much has gone, the other side's monitor has begun to read."""
_ASK_AGAIN_S = (0.2, 1.0, 2.0, 5.0, 10.0, 30.0)
Tell = Callable[[api.Progress], None]


@dataclass(slots=True)
class _Move:
    task: asyncio.Task[None]
    given: bool = False
    """It can't be called off any more."""
    ending: bool = False
    """It has failed or was called off: the domain is being let go on here."""

    def stop(self) -> None:
        """Call it off, once: a second time would stop what lets the domain go on."""
        if not self.given and not self.ending:
            self.ending = True
            self.task.cancel()


@dataclass(frozen=True, slots=True)
class _Destination:
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class _Journey:
    """What a domain is sent with."""

    id: str
    link: Link
    to: _Destination
    request: api.MigrateRequest
    copies: list[str]
    """Disks that the other side lacks, by vdev."""
    tell: Tell


class Outgoing:
    """Carries out migrations to other hosts; at most one of a domain at a time."""

    def __init__(self, life: Life, peers: Peers) -> None:
        self._life = life
        self._records = life.records
        self._peers = peers
        self._moves: dict[str, _Move] = {}

    async def migrate(self, ref: str, request: api.MigrateRequest) -> AsyncGenerator[api.Progress, None]:
        """Refuses when awaited; then says how it goes, its last step with the figures. Leaving calls it off."""
        record = self._records.changeable(ref, "migrate")
        self._records.running(record)
        if record.uuid in self._moves:
            raise Conflict(
                f"Domain '{record.name}' is being migrated already", hint=f"xm migrate --cancel {record.name} ends that"
            )
        steps: asyncio.Queue[api.Progress | None] = asyncio.Queue()
        move = _Move(asyncio.create_task(self._migrate(record, request, steps.put_nowait)))
        self._moves[record.uuid] = move

        def over(_task: object) -> None:
            self._moves.pop(record.uuid, None)
            steps.put_nowait(None)

        move.task.add_done_callback(over)
        return self._follow(move, steps)

    async def _follow(
        self, move: _Move, steps: asyncio.Queue[api.Progress | None]
    ) -> AsyncGenerator[api.Progress, None]:
        try:
            while (step := await steps.get()) is not None:
                yield step
            try:
                await move.task
            except asyncio.CancelledError:
                raise Conflict("the migration was called off: the domain goes on here") from None
        finally:
            move.stop()
            await asyncio.wait((move.task,))

    async def cancel(self, ref: str) -> Record:
        """Call a migration off; returns when the domain goes on here. Raises Conflict if there is none, or too late."""
        record = self._records.changeable(ref, "cancel the migration of")
        move = self._moves.get(record.uuid)
        if move is None:
            raise Conflict(f"Domain '{record.name}' is not being migrated")
        if move.given:
            raise Conflict(f"'{record.name}' has been given to the other host", hint="See: xm list, here and there.")
        await self.interrupt(record.uuid)
        return record

    async def interrupt(self, uuid: str) -> None:
        """Call off whatever is being sent of this domain, if that can still be done."""
        move = self._moves.get(uuid)
        if move is not None and not move.given:
            move.stop()
            await asyncio.wait((move.task,))

    async def here(self, ref: str) -> Record:
        """Let a given domain go on here without an answer: somebody has made sure that it doesn't run there."""
        record = self._records.changeable(ref, "keep")
        async with self._life.registry.lock(record.uuid):
            if not is_given(record):
                raise Conflict(f"Domain '{record.name}' was not given to another host")
            await self._take_back(record)
        return record

    async def _migrate(self, record: Record, request: api.MigrateRequest, tell: Tell) -> None:
        to = _Destination(request.host, request.port or wire.PORT)
        started = time.monotonic()
        tell(api.Progress(step=f"connecting to {to.host}"))
        async with self._life.registry.lock(record.uuid):
            live = self._records.alive(record, "migrate")
            context = await asyncio.to_thread(self._peers.context, server=False)
            link = await wire.connect(to.host, to.port, context)
            try:
                migration_id = uuids.uuid4().hex
                was_paused = live.process.paused
                copies = await self._offer(record, live, link, request, migration_id)
                if request.dry:
                    tell(api.Progress(step="it would fit", done=True))
                    return
                moving = await self._send(record, live, _Journey(migration_id, link, to, request, copies, tell))
                still = live.process.since
                running, came = await self._give(record, live, link, to, migration_id, was_paused=was_paused)
                stood_s = moving.stopped_s if still is None else max(came - running.since_s - still, 0.0)
                tell(
                    api.Progress(
                        step="done",
                        done=True,
                        migrated=api.Migrated(
                            name=record.name,
                            host=to.host,
                            domid=running.domid,
                            total_s=time.monotonic() - started,
                            downtime_s=0.0 if was_paused else stood_s,
                            sent_bytes=moving.sent,
                            rounds=moving.rounds,
                        ),
                    )
                )
            finally:
                await link.close()

    async def _offer(
        self, record: Record, live: Live, link: Link, request: api.MigrateRequest, migration_id: str
    ) -> list[str]:
        """Have the other side say that it will take the domain; the disks that it must be given, by vdev.

        Raises Conflict with all that doesn't fit.
        """
        head = await head_of(record, live, migration_id)
        bound.check_copy(live.spec.config)
        # With the disks as they lie here: an image's root layer, too, which would be made anew there.
        config = msgspec.structs.replace(head.config, disk=live.spec.config.disk)
        head = msgspec.structs.replace(head, config=config, generation=live.spec.generation)
        accelerator = live.process.info.accelerator
        with fit.files(live.spec.config.disk, copy=request.copy_disks) as files:
            offer = wire.Offer(
                protocol=wire.PROTOCOL,
                id=migration_id,
                head=head,
                accelerator=accelerator,
                paused=live.process.paused,
                dry=request.dry,
                cpu_flags=await asyncio.to_thread(fit.cpu_flags, accelerator),
                files=files,
            )
            await link.send(offer)
            reached("offered", link.cut)
            try:
                return (await link.expect(wire.Ready)).copies
            except wire.Misfit as error:
                raise Conflict(
                    f"'{record.name}' does not fit on {request.host}", hint="\n".join(error.problems)
                ) from error

    async def _send(self, record: Record, live: Live, journey: _Journey) -> Moving:
        """Send the state until the other side has all of it and the guest stands still. Else it goes on here."""
        link, to = journey.link, journey.to
        before, was_paused = record.intended, live.process.paused
        after = "stay" if was_paused else "go-on"
        sending = asyncio.create_task(self._fill_and_stream(live, journey))
        loaded = asyncio.create_task(link.expect(wire.Loaded, None))
        try:
            await self._records.change(record, intended=f"{MIGRATE}{journey.id} {after} {to.host} {to.port}")
            reached("sending", link.cut)
            await asyncio.wait((sending, loaded), return_when=asyncio.FIRST_COMPLETED)
            if loaded.done():
                loaded.result()  # raises what the other side says instead
                # The answer may be here before the task that has sent the last of it knows that it has.
                await asyncio.wait((sending,), timeout=_LAST_S)
                if not sending.done():
                    raise wire.Broken("the other side said that it has what it was not sent")
            moving = await sending
            reached("sent", link.cut)
            async with asyncio.timeout(wire.ANSWER_S):
                await loaded
            if live.process.stopped is not None:
                raise Conflict(f"the guest of '{record.name}' has stopped meanwhile")
        except BaseException as error:
            self._moves[record.uuid].ending = True
            link.cut()  # before anything else: who hears nothing gives up
            sending.cancel()
            loaded.cancel()
            await asyncio.gather(sending, loaded, return_exceptions=True)
            await self._go_on(record, live, before, was_paused=was_paused)
            if isinstance(error, TimeoutError):
                raise EngineError(f"{to.host} did not say that it has '{record.name}'") from error
            if isinstance(error, wire.Misfit):
                raise EngineError(f"{to.host} can't take '{record.name}': {'; '.join(error.problems)}") from error
            raise
        return moving

    async def _fill_and_stream(self, live: Live, journey: _Journey) -> Moving:
        """The disks that the other side lacks, then the state; the disks once more while the guest stands still."""
        link, to, copies = journey.link, journey.to, journey.copies
        if not copies:
            return await self._stream(live, journey)

        async def dial(vdev: str) -> Link:
            context = await asyncio.to_thread(self._peers.context, server=False)
            disk = await wire.connect(to.host, to.port, context)
            try:
                await disk.send(wire.Fill(wire.PROTOCOL, journey.id, vdev))
                # QEMU stands still until it is answered, so it isn't told to call before somebody is there.
                await disk.expect(wire.Ready)
            except BaseException:
                disk.cut()
                raise
            return disk

        directory = self._life.directory(live.spec.domid)
        bandwidth = _bytes(journey.request.bandwidth_mib)
        async with disks.copying(directory, live.process, copies, live.spec.uid, bandwidth, dial):
            reached("copying", link.cut)
            what = f"copying the disk{'s' if len(copies) > 1 else ''} {', '.join(copies)}"
            await disks.until_alike(live.process, lambda part: journey.tell(api.Progress(step=what, fraction=part)))
            reached("copied", link.cut)
            return await self._stream(live, journey, lambda: reached("switched", link.cut))

    async def _stream(self, live: Live, journey: _Journey, copied: Callable[[], None] | None = None) -> Moving:
        request = journey.request
        out, into = os.pipe2(os.O_CLOEXEC)
        with contextlib.suppress(OSError):
            fcntl.fcntl(into, fcntl.F_SETPIPE_SZ, wire.PIECE)
        last = Moving(0, 0, 0)

        def progress(moving: Moving) -> None:
            nonlocal last
            last = moving
            whole = moving.sent + moving.remaining
            step = "sending the memory" if moving.rounds <= 1 else f"sending what has changed, round {moving.rounds}"
            journey.tell(api.Progress(step=step, fraction=moving.sent / whole if whole else None))

        pump = asyncio.create_task(_pump(out, journey.link))
        limits = Limits(
            bandwidth=_bytes(request.bandwidth_mib),
            downtime_ms=request.downtime_ms,
            converge=request.converge,
        )
        try:
            frozen = time.monotonic()
            if not request.live:
                await live.process.freeze()
            await live.process.send_live(into, limits, progress, copied)
            if not request.live:
                last = replace(last, stopped_s=time.monotonic() - frozen)
        except BaseException as error:
            os.close(into)
            (size,) = await asyncio.gather(pump, return_exceptions=True)
            if isinstance(error, PyxenError) and isinstance(size, PyxenError):
                raise size from error  # the connection, rather than the monitor's complaint that nobody reads
            raise
        os.close(into)
        await journey.link.send(wire.End(await pump))
        return last

    async def _give(
        self, record: Record, live: Live, link: Link, to: _Destination, migration_id: str, *, was_paused: bool
    ) -> tuple[wire.Running, float]:
        """The point of no return. Returns the other side's last word and when it came, or raises what became of it."""
        move = self._moves[record.uuid]
        move.given = True
        after = "stay" if was_paused else "go-on"
        try:
            await self._records.change(record, intended=f"{GIVEN}{migration_id} {after} {to.host} {to.port}")
        except BaseException:
            link.cut()
            await self._go_on(record, live, None, was_paused=was_paused)
            raise
        reached("given", link.cut)
        try:
            await link.send(wire.Commit())
            reached("committed", link.cut)
            running = await link.expect(wire.Running)
            came = time.time()
        except PyxenError as error:
            self._life.log.warning("other side lost after the domain was given", name=record.name, error=str(error))
            self.settle_soon(record)
            raise EngineError(
                f"{to.host} was lost when it had been given '{record.name}': {error.message}",
                hint="It stands still here until that host says whether it has it. See: xm list, here and there.",
            ) from error
        reached("confirmed", link.cut)
        await self._leave(record, to)
        with contextlib.suppress(PyxenError):
            await link.send(wire.Forget(migration_id))
        return running, came

    def settle_soon(self, record: Record) -> None:
        """Begin to ask the other side what has become of a domain that was given to it."""
        self._life.spawn(self._settle(record))

    async def _settle(self, record: Record) -> None:
        """Ask the other side until it says what has become of a domain that was given to it."""
        given = record.intended or ""
        _, migration_id, _, host, port = given.split(" ")
        to = _Destination(host, int(port))
        attempt = 0
        while True:
            arrived: bool | None = None
            try:
                arrived = await self._ask(to, migration_id)
            except PyxenError as error:
                self._life.log.info("no answer yet", name=record.name, host=host, error=str(error))
            async with self._life.registry.lock(record.uuid):
                if record.intended != given or self._life.registry.records.get(record.uuid) is not record:
                    return  # destroyed, or taken back by hand
                if arrived is True:
                    await self._leave(record, to)
                    with contextlib.suppress(PyxenError):
                        await self._ask(to, migration_id, forget=True)
                    return
                if arrived is False:
                    await self._take_back(record)
                    return
            await asyncio.sleep(_ASK_AGAIN_S[min(attempt, len(_ASK_AGAIN_S) - 1)])
            attempt += 1

    async def _ask(self, to: _Destination, migration_id: str, *, forget: bool = False) -> bool:
        link = await wire.connect(to.host, to.port, await asyncio.to_thread(self._peers.context, server=False))
        try:
            if forget:
                await link.send(wire.Forget(migration_id))
                return True
            await link.send(wire.Question(wire.PROTOCOL, migration_id))
            return (await link.expect(wire.Verdict)).arrived
        finally:
            await link.close()

    async def resume(self, record: Record) -> None:
        """Undo what an earlier xend was about to send. The record's lock is held, the domain is adopted."""
        after = (record.intended or "").split(" ")[2]
        self._life.log.warning("migration was cut short: the domain goes on", name=record.name)
        await self._go_on(record, self._life.registry.live[record.uuid], None, was_paused=after == "stay")

    async def _leave(self, record: Record, to: _Destination) -> None:
        """Let go of a domain that runs on the other side."""
        record.managed = False  # it is kept there
        self._life.tell("domain-migrated", record, host=to.host)
        await self._life.end(record, ShutdownReason.SUSPEND)

    async def _take_back(self, record: Record) -> None:
        """Let a domain go on that did not arrive. Its lock is held."""
        self._life.log.warning("the domain did not arrive: it goes on here", name=record.name)
        after = (record.intended or "").split(" ")[2]
        live = self._life.registry.live.get(record.uuid)
        if live is None or live.process.stopped is not None:
            await self._records.change(record, intended=None)
            assert record.domid is not None
            stopped = live.process.stopped if live is not None else None
            ended = stopped or Stopped(ShutdownReason.FAILED, "it died while it was being migrated")
            self._life.spawn(self._life.stopped(record.uuid, record.domid, ended))
            return
        await self._go_on(record, live, None, was_paused=after == "stay")

    async def _go_on(self, record: Record, live: Live, intended: str | None, *, was_paused: bool) -> None:
        with contextlib.suppress(PyxenError):  # it may have died
            await live.process.abandon_copies()
        if not was_paused:
            await insist(self._life, record, live.process, live.process.thaw, _THAW_S)
        await self._records.change(record, intended=intended)


def _bytes(mib: int | None) -> int | None:
    return mib << 20 if mib else None


async def _pump(out: int, link: Link) -> int:
    """From the monitor's pipe to the other side, until it ends; returns how many bytes. Closes the pipe."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=wire.PIECE)
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(out, "rb", buffering=0)
    )
    size = 0
    # It takes nothing before its monitor has started, which has no bound: memory must be found, disks opened.
    link.bear_silence(_START_S)
    try:
        while data := await reader.read(wire.PIECE):
            await link.send_data(data)
            size += len(data)
            if size - len(data) <= _UNDER_WAY_BYTES < size:
                link.bear_silence()
    finally:
        link.bear_silence()
        transport.close()
    return size

"""Taking in domains from other hosts; see ``outgoing`` for who has one when."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import time
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from pyxen.config.model import DomainConfig
from pyxen.engine.contract import RunningDomain
from pyxen.errors import Conflict, EngineError, PyxenError
from pyxen.xend.finishing import to_the_end
from pyxen.xend.life import Life
from pyxen.xend.migration import disks, fit, wire
from pyxen.xend.migration.disks import Journal
from pyxen.xend.migration.insist import insist
from pyxen.xend.migration.peers import Peers
from pyxen.xend.migration.wire import Link
from pyxen.xend.registry import now
from pyxen.xend.steps import reached
from pyxen.xend.store import Origin, Phase, Record

ARRIVE = "arrive "
"""How ``Record.intended`` begins when a domain has become ours; then ID, what it does next (go-on or stay), and if it
is managed (kept) or not (once).
"""
_FIRST_WORD_S = 20.0
_MOST_LINKS = 32
_UNPAUSE_S = 30.0
_FORGET_S = 60.0


@dataclass(slots=True)
class _Arrival:
    task: asyncio.Task[int]
    record: Record | None = None
    copies: tuple[str, ...] = ()
    accepted: bool = False
    """It is ours, or about to be."""
    given_up: bool = False
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    """That has been written down, or it has failed."""


class Incoming:
    """Listens for other xends."""

    def __init__(self, life: Life, peers: Peers) -> None:
        self._life = life
        self._peers = peers
        self._arrivals: dict[str, _Arrival] = {}
        self._links: set[asyncio.Task[None]] = set()

    async def serve(self, listener: socket.socket) -> None:
        """Answer whoever connects, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            connection, address = await loop.sock_accept(listener)
            if len(self._links) >= _MOST_LINKS:
                connection.close()
                continue
            task = asyncio.create_task(self._answer(connection, f"{address[0]}:{address[1]}"))
            self._links.add(task)
            task.add_done_callback(self._links.discard)

    async def _answer(self, connection: socket.socket, peer: str) -> None:
        log = self._life.log.bind(peer=peer)
        try:
            link = await wire.accept(connection, await asyncio.to_thread(self._peers.context, server=True))
        except (OSError, ssl.SSLError, PyxenError) as error:
            log.warning("connection refused", error=str(error))
            connection.close()
            return
        try:
            async with asyncio.timeout(_FIRST_WORD_S):
                first = await link.receive()
            match first:
                case wire.Offer():
                    await self._take(link, first)
                case wire.Fill():
                    await self._fill(link, first)
                case wire.Question():
                    await link.send(wire.Verdict(await self._verdict(first.id)))
                case wire.Forget():
                    await self._forget(first.id)
                case _:
                    raise wire.Broken("the other side began with something else")
        except (PyxenError, TimeoutError) as error:
            log.warning("migration ended", error=str(error))
        except Exception:
            log.exception("migration failed")
        finally:
            await link.close()

    async def _take(self, link: Link, offer: wire.Offer) -> None:
        problems = await asyncio.to_thread(fit.problems, offer, self._life)
        if offer.id in self._arrivals:
            problems.append("id         this migration is under way already")
        if problems:
            await link.send(wire.Refused(problems))
            return
        reached("invited", link.cut)
        if offer.dry:
            await link.send(wire.Ready([fact.vdev for fact in fit.copies(offer)]))
            return
        arrival = _Arrival(asyncio.create_task(self._arrive(link, offer)))
        self._arrivals[offer.id] = arrival
        try:
            domid = await arrival.task
        except asyncio.CancelledError:
            raise EngineError("given up, since the other side asked again") from None
        except wire.Broken:
            raise
        except PyxenError as error:
            await link.send(wire.Refused([error.message]))
            raise
        finally:
            arrival.settled.set()
            del self._arrivals[offer.id]
        await link.send(wire.Running(domid, self._runs_s(arrival)))
        await link.expect(wire.Forget, _FORGET_S)
        await self._forget(offer.id)

    def _runs_s(self, arrival: _Arrival) -> float:
        """For how long it has been running here."""
        live = self._life.registry.live.get(arrival.record.uuid) if arrival.record is not None else None
        since = live.process.since if live is not None else None
        return 0.0 if since is None else max(time.time() - since, 0.0)

    async def _arrive(self, link: Link, offer: wire.Offer) -> int:
        """Returns the id that the domain has here, when it is ours for good."""
        record = self._record(offer.head.config, offer)
        config = msgspec.structs.replace(offer.head.config, name=record.name)
        async with self._life.registry.lock(record.uuid):
            if record.phase is not Phase.HALTED:
                raise Conflict(f"domain '{record.name}' has been started meanwhile")
            await self._make_and_build(link, offer, record, config)
            await self.finish(record)
            reached("running", link.cut)
            self._life.tell("domain-arrived", record, host=link.peer)
            self._life.restored(record)
            assert record.domid is not None
            return record.domid

    async def _make_and_build(self, link: Link, offer: wire.Offer, record: Record, config: DomainConfig) -> None:
        """Make the disks that are missing and build the domain; if it does not arrive, none of them is left."""
        arrival = self._arrivals[offer.id]
        new = await asyncio.to_thread(fit.copies, offer)
        arrival.record, arrival.copies = record, tuple(fact.vdev for fact in new)
        journal = Journal(self._life.roots.arriving, offer.id)
        try:
            if new:
                await to_the_end(asyncio.to_thread(journal.make, new))
            reached("made", link.cut)
            await link.send(wire.Ready(list(arrival.copies)))
            await self._build(link, offer, record, config, arrival.copies)
        finally:
            await to_the_end(asyncio.to_thread(journal.keep if _arrives(record, offer.id) else journal.undo))

    async def _fill(self, link: Link, request: wire.Fill) -> None:
        """A connection that leads to one of the disks which a domain that arrives must be given."""
        arrival = self._arrivals.get(request.id)
        if arrival is None or request.vdev not in arrival.copies:
            raise wire.Broken("no domain that arrives lacks that disk")

        def folder() -> Path | None:
            record = arrival.record
            return self._life.directory(record.domid) if record is not None and record.domid is not None else None

        await disks.fill(link, folder, arrival.task)

    async def sweep(self) -> None:
        """Remove the disks of domains that were about to arrive when an earlier xend died, and have not."""
        for migration_id, journal in await asyncio.to_thread(Journal.all, self._life.roots.arriving):
            arrived = await self._life.store.meta(_remembered(migration_id)) is not None
            await asyncio.to_thread(journal.keep if arrived else journal.undo)

    def _record(self, config: DomainConfig, offer: wire.Offer) -> Record:
        """The one that we have of this domain, halted, or a new one."""
        assert config.uuid is not None
        record = self._life.registry.records.get(config.uuid)
        if record is not None:
            return record
        return Record(
            uuid=config.uuid,
            name=config.name,
            config=config,
            created_at=now(),
            restart_count=offer.head.restart_count,
        )

    async def _build(
        self, link: Link, offer: wire.Offer, record: Record, config: DomainConfig, empty_disks: tuple[str, ...]
    ) -> None:
        """Have the domain stand ready, and be ours. Raises whatever keeps it from that; then nothing is left of it."""
        out, into = os.pipe2(os.O_CLOEXEC)
        pump = asyncio.create_task(_pump(link, into))

        async def accept(process: RunningDomain) -> str:
            if process.info.accelerator != offer.accelerator:
                raise EngineError(f"it runs on {process.info.accelerator} here, not on {offer.accelerator}")
            await pump
            reached("loaded", link.cut)
            await link.send(wire.Loaded())
            await link.expect(wire.Commit)
            if self._arrivals[offer.id].given_up:
                raise wire.Broken("the other side asked again before it said that")
            self._arrivals[offer.id].accepted = True
            reached("accepted", link.cut)
            kept = "kept" if offer.head.managed or record.managed else "once"
            return f"{ARRIVE}{offer.id} {'stay' if offer.paused else 'go-on'} {kept}"

        build = asyncio.create_task(
            self._life.build(
                record,
                Origin.START,
                paused=True,
                config=config,
                state=out,
                head=offer.head,
                late_disks=not offer.paused,
                accept=accept,
                empty_disks=empty_disks,
            )
        )
        try:
            await asyncio.wait((build, pump), return_when=asyncio.FIRST_COMPLETED)
            if pump.done() and pump.exception() is not None and not build.done():
                build.cancel()  # the connection is gone: nothing more will come
                await asyncio.wait((build,))
                pump.result()
            await build
            reached("arrived", link.cut)
        except asyncio.CancelledError:
            build.cancel()
            await asyncio.wait((build,))
            raise
        finally:
            os.close(out)
            pump.cancel()
            await asyncio.gather(pump, return_exceptions=True)

    async def finish(self, record: Record) -> None:
        """Let a domain run that has become ours. Its lock is held.

        That it has arrived is written in ``intended`` before; what outlives that is written when the guest runs.
        """
        _, migration_id, after, kept = (record.intended or "").split(" ")
        if after == "go-on":
            process = self._life.registry.live[record.uuid].process
            await insist(self._life, record, process, process.unpause, _UNPAUSE_S)
        await self._life.records.change(
            record, {_remembered(migration_id): record.uuid}, intended=None, managed=kept == "kept"
        )

    async def remember(self, record: Record) -> None:
        """Write down that a domain has arrived, for when the other side asks, whatever becomes of it now."""
        await self._life.store.set_meta(_remembered((record.intended or "").split(" ")[1]), record.uuid)

    async def _verdict(self, migration_id: str) -> bool:
        arrival = self._arrivals.get(migration_id)
        if arrival is not None:
            if not arrival.accepted and not arrival.given_up:
                arrival.given_up = True
                arrival.task.cancel()
            await arrival.settled.wait()
        if any(_arrives(record, migration_id) for record in self._life.registry.records.values()):
            return True
        return await self._life.store.meta(_remembered(migration_id)) is not None

    async def _forget(self, migration_id: str) -> None:
        await self._life.store.set_meta(_remembered(migration_id), None)


def _arrives(record: Record, migration_id: str) -> bool:
    """Has it become ours, by this migration, just now?"""
    return (record.intended or "").startswith(f"{ARRIVE}{migration_id} ")


def _remembered(migration_id: str) -> str:
    return f"arrived:{migration_id}"


async def _pump(link: Link, into: int) -> None:
    """From the other side into the monitor's pipe, up to the end of the state. Closes the pipe."""
    loop = asyncio.get_running_loop()
    file = os.fdopen(into, "wb", buffering=0)
    transport, protocol = await loop.connect_write_pipe(
        lambda: asyncio.StreamReaderProtocol(asyncio.StreamReader()), file
    )
    writer = asyncio.StreamWriter(transport, protocol, None, loop)
    size = 0
    try:
        while True:
            match await link.receive():
                case bytes() as data:
                    if not size:
                        reached("receiving", link.cut)
                    size += len(data)
                    writer.write(data)
                    with contextlib.suppress(OSError):  # the monitor has ended; it is asked why
                        await writer.drain()
                case wire.End(whole):
                    if whole != size:
                        raise wire.Broken(f"{whole} bytes were sent, {size} came")
                    break
                case _:
                    raise wire.Broken("something else came in the middle of the state")
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    except BaseException:
        transport.abort()
        raise

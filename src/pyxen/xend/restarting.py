"""Restarts: building a domain again when its guest has stopped, or not, where that would only go round in circles."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import sqlite3
import uuid as uuids
from typing import TYPE_CHECKING, Final

from pyxen.api import ShutdownReason
from pyxen.errors import PyxenError, ResourceExhausted
from pyxen.xend.registry import now, renamed
from pyxen.xend.store import Origin, Phase, Record

if TYPE_CHECKING:
    from pyxen.xend.life import Life

_FIRST_TRY_S, _LONGEST_WAIT_S = 2.0, 30.0
_LEAST_ROOM: Final = 1 << 20
"""Bytes on xend's disk without which nobody tries."""


class Restarts:
    """Carries them out. All but ``_when_there_is_room`` expect the domain's lock to be held."""

    def __init__(self, life: Life) -> None:
        self._life = life

    async def restart(self, record: Record, *, asked: bool) -> None:
        """Start the domain again, under a new id; refuse one that stops as soon as it has started."""
        if not asked and self._too_fast(record):
            await self._refuse_restart(record)
            return
        reason = record.last_reason or ShutdownReason.REBOOT
        live = self._life.registry.live.get(record.uuid)
        if live is not None:
            await live.process.destroy()
        old = record.domid
        # From here on the store says "build this again": a crash of xend in between repeats it.
        record.phase, record.origin, record.intended = Phase.BUILDING, Origin.RESTART, None
        record.restart_count += 1
        record.restarted_at = now()
        await self._life.store.save(record)
        await self._life.release(record, reason)
        await self.rebuild(record, old)

    def _too_fast(self, record: Record) -> bool:
        return record.restarted_at is not None and (
            now() - record.restarted_at < self._life.settings.minimum_restart_time
        )

    async def _refuse_restart(self, record: Record) -> None:
        elapsed = now() - (record.restarted_at or 0.0)
        self._life.log.error(
            f"VM {record.name} restarting too fast ({elapsed:.1f} seconds since the last restart). "
            "Refusing to restart to avoid loops."
        )
        self._life.tell("domain-restart-refused", record, reason="restarting too fast", seconds=round(elapsed, 1))
        await self._life.end(record, record.last_reason or ShutdownReason.REBOOT)

    async def rebuild(self, record: Record, old: int | None) -> None:
        """The second half of a restart; recovery comes in here.

        What finds no room stays, written as it is, until there is some: it is tried again, by a later xend too.
        """
        try:
            await self._life.build(record, Origin.RESTART, paused=False, stays=_is_lack_of_room)
        except PyxenError as error:
            if not _is_lack_of_room(error):
                self._life.registry.waiting.pop(record.uuid, None)
                self._life.tell("domain-restart-failed", record, reason=str(error))
                return
            if record.uuid not in self._life.registry.waiting:
                self._life.spawn(self._when_there_is_room(record, old))
                self._life.tell("domain-restart-waits", record, reason=str(error))
            self._life.registry.waiting[record.uuid] = f"its restart finds no room: {error.message}"
        else:
            self._life.registry.waiting.pop(record.uuid, None)
            self._life.tell("domain-restarted", record, previous_domid=old)

    async def again(self, record: Record) -> None:
        """Try once more to restart a domain that waits for room. Raises ResourceExhausted if there is none yet."""
        await self.rebuild(record, record.domid)
        if (why := self._life.registry.waiting.get(record.uuid)) is not None:
            raise ResourceExhausted(
                f"'{record.name}' can't be restarted yet: {why}", hint=f"See: df -h {self._life.roots.domains}"
            )

    async def _when_there_is_room(self, record: Record, old: int | None) -> None:
        wait_s = _FIRST_TRY_S
        while True:
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, _LONGEST_WAIT_S)
            async with self._life.registry.lock(record.uuid):
                if not self._waits(record):
                    return
                if await asyncio.to_thread(self._room) >= _LEAST_ROOM:
                    await self.rebuild(record, old)

    def _waits(self, record: Record) -> bool:
        known = self._life.registry.records.get(record.uuid) is record and record.phase is Phase.BUILDING
        return known and record.uuid in self._life.registry.waiting

    def _room(self) -> int:
        with contextlib.suppress(OSError):
            found = os.statvfs(self._life.roots.domains)
            return found.f_bavail * found.f_frsize
        return 0

    async def rename_restart(self, record: Record) -> None:
        """Keep the stopped domain under a new UUID and the name Domain-UUID, and start a new one in its place.

        What is kept is the record and the memory image that was dumped; the process goes, since it holds the disks.
        """
        if self._too_fast(record):
            await self._refuse_restart(record)
            return
        uuid = str(uuids.uuid4())
        kept = renamed(record, f"Domain-{uuid}", uuid)
        kept.phase, kept.managed = Phase.PRESERVED, False
        fresh = renamed(record, record.name)
        fresh.phase, fresh.origin, fresh.domid, fresh.intended = Phase.BUILDING, Origin.RESTART, None, None
        fresh.restart_count += 1
        fresh.restarted_at = now()
        live = self._life.registry.live.get(record.uuid)
        if live is not None:
            await live.process.destroy()
        await self._life.release(record, record.last_reason or ShutdownReason.REBOOT)
        self._life.registry.records[uuid] = kept
        self._life.registry.records[fresh.uuid] = fresh
        await self._life.store.save(fresh, kept)
        self._life.tell("domain-preserved", kept)
        await self.rebuild(fresh, record.domid)


def _is_lack_of_room(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode == sqlite3.SQLITE_FULL:
            return True
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__
    return False

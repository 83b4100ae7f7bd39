"""Takes memory from domains while the host runs short of it, and gives it back afterwards.

Off unless xend.toml says ``balloon = true``, and then only domains with ``min_memory`` are asked, down to that. It is
their balloons' doing, as with ``xm mem-set``, but the description stays: ``memory`` is what a domain gets back.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pyxen.errors import PyxenError
from pyxen.xend.host import PROC, read_memory
from pyxen.xend.life import Life

_LOOK_S = 5.0
_PATIENCE = 2
"""Looks to leave out after an order: balloons take their time."""
_LEAST_MIB = 8
"""Smaller changes aren't worth an order."""
_PRESSURE = 10.0
"""In percent of time that something waited for memory, over ten seconds."""


@dataclass(frozen=True, slots=True)
class Guest:
    """A domain that takes part; all in MiB."""

    uuid: str
    now: int
    floor: int
    wanted: int
    """What it has when there is enough for all."""


def plan(available: int, pressed: bool, low: int, high: int, guests: Sequence[Guest]) -> dict[str, int]:
    """New sizes of those that are to change, by UUID, from the memory that the host has ``available``.

    Below ``low`` (or ``pressed``: something waits for memory) the guests give, above ``high`` they get, until it is
    half way between the two; each in proportion to what it may give or should get.
    """
    middle = (low + high) // 2
    if available < low or pressed:
        room = {guest.uuid: max(guest.now - guest.floor, 0) for guest in guests}
        missing, sign = max(middle - available, (high - low) // 2), -1
    elif available > high:
        room = {guest.uuid: max(guest.wanted - guest.now, 0) for guest in guests}
        missing, sign = available - middle, 1
    else:
        return {}
    total = sum(room.values())
    if not total:
        return {}
    moved = {uuid: min(each, missing * each // total) for uuid, each in room.items()}
    now = {guest.uuid: guest.now for guest in guests}
    # All of what is left, however little, so that a guest gets to its end.
    return {
        uuid: now[uuid] + sign * size for uuid, size in moved.items() if size >= _LEAST_MIB or 0 < size == room[uuid]
    }


class Ballooning:
    """Looks at the host's memory every few seconds."""

    def __init__(self, life: Life, proc: Path = PROC) -> None:
        self._life = life
        self._proc = proc
        self._waiting = 0

    async def run(self) -> None:
        """Go on until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_S)
            await self.look()

    async def look(self) -> None:
        """One look, with the orders that follow."""
        if self._waiting:
            self._waiting -= 1
            return
        settings = self._life.settings
        available = read_memory(self._proc).get("MemAvailable", 0)
        sizes = plan(
            available, self._pressed(), settings.balloon_low_mib, settings.balloon_high_mib, list(self._guests())
        )
        for uuid, mib in sizes.items():
            await self._order(uuid, mib, available)
        if sizes:
            self._waiting = _PATIENCE

    def _pressed(self) -> bool:
        try:
            text = (self._proc / "pressure/memory").read_text()
        except OSError:  # a kernel without PSI
            return False
        found = re.search(r"^some avg10=([0-9.]+)", text, re.MULTILINE)
        return found is not None and float(found[1]) >= _PRESSURE

    def _guests(self) -> list[Guest]:
        found = []
        for uuid, live in self._life.registry.live.items():
            record = self._life.registry.records.get(uuid)
            if record is None or record.config.min_memory is None or live.process.paused or live.process.stopped:
                continue
            if live.spec.config.pci:  # its memory is locked: the host gets nothing of what it gives
                continue
            now = live.process.statistics().memory_mib or live.spec.most_memory_mib
            found.append(Guest(uuid, now, record.config.min_memory, record.config.memory))
        return found

    async def _order(self, uuid: str, mib: int, available: int) -> None:
        lock = self._life.registry.lock(uuid)
        if lock.locked():  # something is being done to it: another time
            return
        async with lock:
            live, record = self._life.registry.live.get(uuid), self._life.registry.records.get(uuid)
            if live is None or record is None:
                return
            try:
                await live.process.set_memory(mib)
            except PyxenError as error:
                self._life.log.warning("balloon not set", name=record.name, error=str(error))
            else:
                self._life.tell("domain-ballooned", record, memory_mib=mib, available_mib=available)

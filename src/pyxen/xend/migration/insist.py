"""Letting a guest go on whose disks another monitor may still have, for a moment."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from pyxen.engine.contract import RunningDomain
from pyxen.errors import PyxenError
from pyxen.xend.life import Life
from pyxen.xend.store import Record

_AGAIN_S = 0.1


async def insist(
    life: Life, record: Record, process: RunningDomain, order: Callable[[], Awaitable[None]], within_s: float
) -> None:
    """Give an order until it is carried out, or the guest has stopped. What still fails after that time is logged."""
    deadline = time.monotonic() + within_s
    while process.stopped is None:
        try:
            await order()
            return
        except PyxenError as error:
            if time.monotonic() > deadline:
                life.log.error("the domain doesn't go on", name=record.name, error=str(error))
                return
            await asyncio.sleep(_AGAIN_S)

"""Pictures of guests' screens."""

from __future__ import annotations

import os

from pyxen.errors import Conflict, EngineError
from pyxen.xend.life import Life
from pyxen.xend.records import DOMAIN_0

_MOST_BYTES = 64 << 20


class Screens:
    """Takes them."""

    def __init__(self, life: Life) -> None:
        self._life = life

    async def picture(self, ref: str) -> bytes:
        """What a domain's screen shows now, as PNG. Raises Conflict if it doesn't run, Unsupported if it has none."""
        if ref in DOMAIN_0:
            raise Conflict("Domain-0 is the host itself: it has no screen here")
        live = self._life.records.alive(self._life.registry.find(ref), "take a picture of the screen of")
        memory = os.memfd_create("screen", os.MFD_CLOEXEC)
        try:
            # For writing alone, as the monitor opens it.
            file = os.open(f"/proc/self/fd/{memory}", os.O_WRONLY | os.O_CLOEXEC)
            try:
                await live.process.screendump(file)
            finally:
                os.close(file)
            picture = os.pread(memory, _MOST_BYTES, 0)
        finally:
            os.close(memory)
        if not picture:
            raise EngineError(f"the monitor of '{live.spec.config.name}' has written no picture")
        return picture

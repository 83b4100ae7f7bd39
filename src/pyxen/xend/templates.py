"""The templates that clones share their memory through: made when a snapshot is first cloned, kept while it is in use.

A template takes as much of the host's memory as its guest has used. xend lets go of one that nobody asked for in a
while; clones that run keep the pages that they share.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from pyxen.engine.template import Template
from pyxen.errors import ResourceExhausted

_IDLE_S = 600.0


class Templates:
    """By their snapshots' folders. Used on one event loop."""

    def __init__(self, on_drop: Callable[[Path], None]) -> None:
        """``on_drop`` is called with the folder of each that is let go of."""
        self._on_drop = on_drop
        self._kept: dict[Path, Template] = {}
        self._timers: dict[Path, asyncio.TimerHandle] = {}

    def __contains__(self, folder: Path) -> bool:
        return folder in self._kept

    def find(self, folder: Path) -> Template | None:
        """The full one of a snapshot, if there is one."""
        return self._kept.get(folder)

    def get(self, folder: Path, mib: int) -> Template:
        """The one of a snapshot, or a new one that is to be filled. Raises ResourceExhausted."""
        if (found := self._kept.get(folder)) is not None:
            return found
        try:
            return Template(mib << 20)
        except OSError as error:
            raise ResourceExhausted(f"there is no memory for a template: {error.strerror}") from error

    def keep(self, folder: Path, template: Template) -> None:
        """Keep a full one for a while, from now on."""
        self._kept[folder] = template
        if (timer := self._timers.pop(folder, None)) is not None:
            timer.cancel()
        self._timers[folder] = asyncio.get_running_loop().call_later(_IDLE_S, self.drop, folder)

    def still_used(self, folder: Path) -> None:
        """Keep that of a snapshot, if there is one, for a while from now on."""
        if (found := self._kept.get(folder)) is not None:
            self.keep(folder, found)

    def drop(self, folder: Path) -> None:
        """Let go of that of a snapshot, or of all of a domain's."""
        for each in [each for each in self._kept if folder in (each, each.parent)]:
            self._kept.pop(each).close()
            self._timers.pop(each).cancel()
            self._on_drop(each)

"""``xm debug-keys``: each domain's hypervisor says what it knows, in one ring as Xen would have."""

from __future__ import annotations

from collections.abc import Callable, Collection

from pyxen.errors import InvalidRequest, PyxenError, Unsupported
from pyxen.hypervisor.debug_keys import DESCRIPTIONS
from pyxen.xend.registry import Live

_HELP = "h"


async def press(keys: str, domains: Collection[Live], say: Callable[[str], None]) -> None:
    """Press the keys one after the other. Raises InvalidRequest for one that isn't there, before any is."""
    unknown = [key for key in keys if key not in DESCRIPTIONS and key != _HELP]
    if unknown:
        there = ", ".join(f"{key} ({words})" for key, words in DESCRIPTIONS.items())
        raise InvalidRequest(f"there is no debug key {unknown[0]!r}", hint=f"There are {there} and h (help).")
    for key in keys:
        if key == _HELP:
            say("'h' pressed -> showing installed handlers")
            for each, words in DESCRIPTIONS.items():
                say(f" key '{each}' => {words}")
            continue
        say(f"'{key}' pressed -> {DESCRIPTIONS[key]}")
        for live in domains:
            await _ask(key, live, say)


async def _ask(key: str, live: Live, say: Callable[[str], None]) -> None:
    try:
        for line in await live.process.debug_key(key):
            say(line)
    except Unsupported:
        say(f"domain {live.spec.domid} is not on this hypervisor")
    except PyxenError as error:  # it is just ending, say
        say(f"domain {live.spec.domid}: {error.message}")

"""xm debug-keys: what comes into the ring."""

from __future__ import annotations

import re

import pytest

from pyxen.errors import InvalidRequest
from tests.unit.xend.test_life import Boot, create

pytestmark = pytest.mark.anyio


async def test_what_domains_say_comes_into_the_ring(boot: Boot) -> None:
    xend = await boot()
    await create(xend)
    await xend.domains.debug_keys("he")
    said = [re.sub(r"^\(XEN\) \[.*?\] ", "", line) for line in xend.domains.dmesg().splitlines()]
    begin = said.index("'h' pressed -> showing installed handlers")
    assert said[begin + 1] == " key 'e' => dump evtchn info"
    assert said[-2:] == ["'e' pressed -> dump evtchn info", "domain 1 is not on this hypervisor"]


async def test_an_unknown_key_presses_none(boot: Boot) -> None:
    xend = await boot()
    before = xend.domains.dmesg()
    with pytest.raises(InvalidRequest, match="no debug key 'x'"):
        await xend.domains.debug_keys("hx")
    assert xend.domains.dmesg() == before

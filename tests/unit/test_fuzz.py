"""Hostile guests, each for a moment: see tests.fuzz, which also makes millions. ``PYXEN_FUZZ=N``: N times as many."""

from __future__ import annotations

import os
import random

import pytest

from tests.fuzz.harness import Found, Kind, run
from tests.fuzz.hypercalls import HostileGuest
from tests.fuzz.pages import PAGE, Pages
from tests.fuzz.targets import KINDS

FACTOR = int(os.environ.get("PYXEN_FUZZ", "1"))
INPUTS = {
    "hypercalls": 40_000,
    "fifo": 20_000,
    "xenstore": 20_000,
    "blkif": 12_000,
    "race": 6_000,
    "netif": 20_000,
    "console": 20_000,
    "control": 10_000,
    "loader": 1_000,
    "agent": 20_000,
    "nbd": 10_000,
}


@pytest.mark.parametrize("name", KINDS)
def test_a_hostile_guest_hurts_only_itself(name: str) -> None:
    report = run(name, KINDS[name], INPUTS[name] * FACTOR, os.environ.get("PYXEN_FUZZ_SEED", "0"))
    print(report)
    missing = [outcome for outcome in KINDS[name].wanted if not report.outcomes[outcome]]
    assert not missing, f"an attack that never gets in proves nothing: {missing}"


def test_a_write_beyond_a_guest_is_found() -> None:
    guest = HostileGuest(random.Random(0))
    guest._guarded[3] = 0
    with pytest.raises(AssertionError, match="around"):
        guest.check()


def test_a_page_that_was_not_granted_is_found() -> None:
    pages = Pages(random.Random(0), 8)
    pages.grant(9, 3)
    assert len(pages.grants.map(9, write=True)) == PAGE
    with pytest.raises(AssertionError, match="never granted"):
        pages.memory.view(4 * PAGE, 1)
    with pytest.raises(AssertionError, match="kept grants"):
        pages.given_back()
    pages.freeze(5)
    pages.page(5)[7] ^= 1
    with pytest.raises(AssertionError, match="0x5 has changed"):
        pages.check()


def test_a_fault_comes_with_the_way_to_see_it_again() -> None:
    class Faulty(HostileGuest):
        def step(self) -> int:
            raise KeyError("fault")

    with pytest.raises(Found, match=r"python -m tests\.fuzz faulty 10 s --episode 4"):
        run("faulty", Kind(Faulty, 10, ()), 100, "s", episode=4)

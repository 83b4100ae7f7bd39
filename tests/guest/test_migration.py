"""Live migration of a real guest between two xends, through xm."""

from __future__ import annotations

import os
import re
import time

import pytest

from pyxen.xend.steps import INCOMING, OUTGOING
from tests.guest.counting import UNBROKEN, ask, counts_on, start_counting
from tests.guest.host import Host, wait_for
from tests.guest.pair import exactly_one, migrate, pair, start_migrating, try_migrate

_TIMES = int(os.environ.get("PYXEN_CYCLES", "4"))
_FAULTS = os.environ.get("PYXEN_FAULTS", "loaded,given,committed,accepted").split(",")
"""Steps at which a xend is killed: the few that decide who has the domain, or all of them with "all"."""
_STEPS = (*OUTGOING, *INCOMING) if _FAULTS == ["all"] else _FAULTS


def test_a_guest_goes_to_and_fro() -> None:
    with pair() as (one, other):
        digest = start_counting(one, 2, qcow2=True)
        stranger = try_migrate(other, one)
        assert "does not exist" in stranger.stderr
        assert "would fit" in migrate(one, other, "--check")
        source, to, last = one, other, 0
        for _ in range(_TIMES):
            said = migrate(source, to)
            print(said.strip(), flush=True)
            assert re.search(rf"Migrated domain web to {to.address} \(id=\d+\): .* down for \d+ ms", said)
            assert "web" not in source.domains()
            last = counts_on(to, last)
            source, to = to, source
        assert ask(source, UNBROKEN) == "unbroken"
        assert ask(source, "sha256sum < /tmp/random") == digest
        assert ask(source, "umount /data && mount /dev/xvda /data && sha256sum < /data/random") == digest
        # The agent has told it, or its hypervisor.
        wait_for(lambda: clock_is_right(source), "its clock is right")
        # Nothing that a guest of QEMU's needs may have stayed behind.
        source.xm("save", "-c", "web", str(source.root / "web.saved"))
        source.xm("shutdown", "-w", "web")


def clock_is_right(host: Host) -> bool:
    before, shown, after = time.time(), int(ask(host, "date +%s")), time.time()
    print(f"its clock is between {shown - after:.1f} and {shown + 1 - before:.1f} s ahead")
    return before - 3 < shown < after + 3


def test_it_goes_on_here_when_it_is_called_off_or_does_not_fit() -> None:
    with pair() as (one, other):
        start_counting(one, 1)
        other.xm("create", "-p", "image=tiny", "name=web", "memory=128")
        refused = try_migrate(one, other)
        assert f"does not fit on {other.address}" in refused.stderr
        assert "already exists" in refused.stderr
        other.xm("destroy", "web")
        moving = start_migrating(one, other, "--bandwidth", "1")
        wait_for(lambda: "web" in other.domains(), "it has begun")
        one.xm("migrate", "--cancel", "web")
        _, complaint = moving.communicate(timeout=60)
        assert moving.returncode
        assert "called off" in complaint
        assert exactly_one(one, other) is one
        counts_on(one, 0)
        assert ask(one, UNBROKEN) == "unbroken"


@pytest.mark.timeout(max(600, 150 * len(_STEPS)))
def test_a_killed_xend_leaves_it_on_exactly_one_side() -> None:
    with pair() as (one, other):
        digest = start_counting(one, 1)
        source, to, last = one, other, 0
        for step in _STEPS:
            victim = source if step in OUTGOING else to
            victim.start_with({"PYXEN_FAULT": f"{step}:kill"})
            try_migrate(source, to)
            wait_for(lambda: victim.dead, f"xend died at {step}")  # noqa: B023
            victim.start()
            has_it = exactly_one(source, to)
            last = counts_on(has_it, last)
            names = {id(source): "source", id(to): "destination"}
            print(f"{step:10} {names[id(victim)]:12} killed: it runs on the {names[id(has_it)]}", flush=True)
            source, to = has_it, (other if has_it is one else one)
        assert ask(source, UNBROKEN) == "unbroken"
        assert ask(source, "umount /data && mount /dev/xvda /data && sha256sum < /data/random") == digest

"""Saving and restoring a domain with a real kernel, through xm."""

from __future__ import annotations

import os
from pathlib import Path

from tests.guest.counting import UNBROKEN, ask, counts_on, start_counting
from tests.guest.host import Host

_CYCLES = int(os.environ.get("PYXEN_CYCLES", "3"))


def test_a_guest_goes_on_where_it_was_saved(host: Host) -> None:
    digest = start_counting(host, 2)
    saved = host.root / "web.saved"
    last = 0
    for cycle in range(_CYCLES):
        host.xm("save", "web", str(saved))
        assert "web" not in host.domains()
        assert [path.name for path in host.root.glob("*web.saved*")] == ["web.saved"]
        host.xm("restore", *(["-p"] if cycle == 0 else []), str(saved))
        if cycle == 0:
            assert host.domains()["web"]["power_state"] == "paused"
            host.xm("unpause", "web")
        assert host.domains()["web"]["domid"] == cycle + 2
        last = counts_on(host, last)
        print(f"saved and restored {cycle + 1} times, counted to {last}", flush=True)
    for cycle in range(_CYCLES):
        host.xm("save", "-c", "web", str(saved))
        assert host.domains()["web"]["domid"] == _CYCLES + 1
        last = counts_on(host, last)
        print(f"{cycle + 1} checkpoints, counted to {last}", flush=True)
    assert ask(host, UNBROKEN) == "unbroken"
    assert ask(host, "sha256sum < /tmp/random") == digest
    assert ask(host, "umount /data && mount /dev/xvda /data && sha256sum < /data/random") == digest
    _refuses_what_is_damaged(host, saved)
    host.xm("destroy", "web")


def _refuses_what_is_damaged(host: Host, saved: Path) -> None:
    host.xm("destroy", "web")
    whole = saved.read_bytes()
    saved.write_bytes(whole[:-1000])
    assert "cut off" in host.try_run("xm", "restore", str(saved)).stderr
    middle = len(whole) // 2
    saved.write_bytes(whole[:middle] + bytes(64) + whole[middle + 64 :])
    assert "is damaged" in host.try_run("xm", "restore", str(saved)).stderr
    assert "web" not in host.domains()
    saved.write_bytes(whole)
    host.xm("restore", str(saved))
    assert host.domains()["web"]["power_state"] == "running"

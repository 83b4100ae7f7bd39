"""xend's disk is full: what can't be done says so and leaves nothing; what runs goes on, and its end is noticed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyxen.client import Client, find_address
from tests.guest.host import type_line, wait_for
from tests.guest.small import SmallHost


@pytest.fixture
def small(tiny: Path) -> Iterator[SmallHost]:
    if os.geteuid() != 0:
        pytest.skip("a file system of its own needs root")
    host = SmallHost()
    try:
        host.start()
        yield host
    finally:
        leftovers = host.stop()
    assert not leftovers, f"left behind: {leftovers}"


def test_a_domain_that_finds_no_room_is_refused_and_leaves_nothing(small: SmallHost) -> None:
    small.fill()
    done = small.try_run("xm", "create", "image=tiny", "name=web", "memory=192")
    assert done.returncode == 1
    error, hint = done.stderr.splitlines()
    assert re.fullmatch(f"Error: cannot (make|write) .*{small.root}/run/domains/1.*: no space .*", error, re.IGNORECASE)
    assert "room" in hint
    assert small.domains() == {}
    assert list((small.root / "run" / "domains").iterdir()) == []
    assert not [line for line in small.processes().values() if "qemu" in line]
    small.make_room()
    small.xm("create", "image=tiny", "name=web", "memory=192")
    small.ready("web").close()
    small.xm("destroy", "web")


def test_what_runs_goes_on_and_its_end_is_noticed(small: SmallHost) -> None:
    for name in ("web", "db"):
        small.xm("create", "image=tiny", f"name={name}", "memory=192")
    console = small.ready("web")
    small.ready("db").close()
    small.fill()
    # More than there is room for: what is printed is lost, but it holds nobody up.
    console.sendline("seq 1 5000; echo $((6 * 7)) >/run/answer")
    # More events than fit into one block of a file.
    with Client(find_address(small.environ)) as xend:
        for _ in range(50):
            assert xend.pause("db").state == "--p---"
            assert xend.unpause("db").power_state == "running"
    small.xm("rename", "db", "data")
    small.xm("shutdown", "-w", "data")
    assert set(small.domains()) == {"web"}
    small.kill_xend()
    small.start()
    assert set(small.domains()) == {"web"}
    small.make_room()
    console.close()
    console = small.console("web")
    console.sendline("echo the answer is $(cat /run/answer)")
    console.expect("the answer is 42")
    console.close()
    small.xm("shutdown", "-w", "web")
    assert small.domains() == {}


def test_a_full_disk_of_a_guest_pauses_it_until_there_is_room(small: SmallHost) -> None:
    disk = small.root / "data.img"
    with disk.open("wb") as file:
        file.truncate(64 << 20)
    small.xm("create", "image=tiny", "name=web", "memory=192", f"disk=file:{disk},xvda,w")
    console = small.ready("web")
    wait_for(lambda: "vda" in type_line(console, "ls /dev"), "the guest has its disk")
    small.fill()
    console.sendline(
        "dd if=/dev/urandom of=/dev/xvda bs=64k count=4 conv=fsync 2>/dev/null && echo $((6 * 7)) bytes more"
    )
    wait_for(lambda: small.domains()["web"]["state"] == "--p---", "QEMU pauses it")
    reason = small.domains()["web"]["paused_reason"]
    assert reason == "its disk xvda can't be written to on the host: No space left on device"
    small.make_room()
    small.xm("unpause", "web")
    console.expect("42 bytes more")
    assert small.domains()["web"]["paused_reason"] is None
    console.close()
    small.xm("destroy", "web")

"""Snapshots and clones of a guest with a real kernel, through xm."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from tests.guest.counting import COUNTER
from tests.guest.host import Host, type_line, wait_for
from tests.guest.test_lifecycle import make_disk


def _ask(host: Host, name: str, command: str, number: int) -> str:
    """What a command prints in a guest; ``number`` marks the answer, since a console begins with what was before."""
    console = host.console(name)
    console.sendline(f'echo "mark""{number}[$({command})]"')
    console.expect(rf"mark{number}\[([^\]]*)\]")
    answer = str(console.match.group(1))
    console.close()
    return answer.strip()


def test_a_guest_goes_back_and_its_clones_go_their_own_ways(host: Host) -> None:
    disk = host.root / "data.qcow2"
    raw = make_disk(host.root / "data.img", 16)
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", str(raw), str(disk)], check=True)
    host.xm("create", "image=tiny", "name=web", "memory=128", f"disk=tap:qcow2:{disk},xvda,w")
    console = host.ready("web")
    type_line(console, "mkdir -p /data && mount /dev/xvda /data")
    type_line(console, "echo first > /data/note && cp /data/note /tmp/note")
    type_line(console, COUNTER)
    console.close()
    host.xm("snapshot", "create", "web", "base")
    counted = int(_ask(host, "web", "tail -n 1 /tmp/n", 1))
    assert _ask(host, "web", "echo second > /data/note; echo second > /tmp/note; sync; cat /data/note", 2) == "second"
    # What was not yet on the disk is in the memory: both go back together.
    for number, clone in enumerate(("one", "two"), start=3):
        host.xm("clone", "-s", "base", "web", clone)
        mine = f"cat /data/note /tmp/note; echo {clone} > /data/note; sync"
        assert _ask(host, clone, mine, number).split() == ["first", "first"]
        assert host.xm("xenstore-read", f"/local/domain/{host.domains()[clone]['domid']}/name").strip() == clone
        assert "/memfd:guest" in Path(f"/proc/{host.domains()[clone]['pid']}/maps").read_text()
    host.xm("clone", "web", "three")
    assert _ask(host, "three", "cat /data/note /tmp/note", 5).split() == ["second", "second"]
    there = host.domains()
    assert len({domain["uuid"] for domain in there.values()}) == 4
    again = "umount /data && mount /dev/xvda /data && cat /data/note"
    answers = [_ask(host, name, again, number) for number, name in enumerate(("web", "one", "two"), start=6)]
    assert answers == ["second", "one", "two"]
    for name in ("one", "two", "three"):
        host.xm("destroy", name)
    host.xm("snapshot", "revert", "web", "base")
    assert host.domains()["web"]["uuid"] == there["web"]["uuid"]
    assert _ask(host, "web", "cat /data/note /tmp/note", 9).split() == ["first", "first"]
    assert _ask(host, "web", again, 10) == "first"
    first = int(_ask(host, "web", "tail -n 1 /tmp/n", 11))
    wait_for(lambda: int(_ask(host, "web", "tail -n 1 /tmp/n", 12)) > first, "the guest counts on")
    assert counted > 0
    (listed,) = json.loads(host.xm("snapshot", "list", "web", "--format", "json"))["snapshots"]
    assert (listed["name"], listed["disks"]) == ("base", ["xvda"])
    host.xm("snapshot", "rm", "web", "base")
    assert not list((host.root / "state" / "snapshots").iterdir())
    host.xm("destroy", "web")
    check = subprocess.run(["qemu-img", "check", str(disk)], check=False, capture_output=True, text=True)
    assert check.returncode == 0, check.stdout

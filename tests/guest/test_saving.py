"""Saving and restoring a domain with a real kernel, through xm."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import pexpect

from tests.guest.host import Host, type_line, wait_for
from tests.guest.test_lifecycle import make_disk

_COUNTER = "(n=0; while :; do n=$((n+1)); echo $n >> /tmp/n; sleep 0.05; done) &"
_UNBROKEN = "seq $(wc -l < /tmp/n) > /tmp/s; head -n $(wc -l < /tmp/s) /tmp/n | cmp - /tmp/s && echo unbroken"
_CYCLES = int(os.environ.get("PYXEN_CYCLES", "3"))


def _ask(host: Host, command: str) -> str:
    """What a command prints, marked: the console begins with what was printed before, by a guest since saved."""
    mark = uuid.uuid4().hex[:8]
    console = host.console("web")
    console.sendline(f'echo "{mark[:4]}""{mark[4:]}[$({command})]"')  # in two parts, so that its echo is no answer
    console.expect(rf"{mark}\[([^\]]*)\]")
    answer = str(console.match.group(1))
    console.send("\x1d")  # Ctrl-] leaves the console
    console.expect(pexpect.EOF)
    console.close()
    return answer.strip()


def _counted(host: Host) -> int:
    return int(_ask(host, "wc -l < /tmp/n"))


def _counts_on(host: Host, last: int) -> int:
    """Wait until it has got further than ``last``, which it must not have lost."""
    count = _counted(host)
    assert count >= last
    wait_for(lambda: _counted(host) > count, "the guest counts on")
    return _counted(host)


def test_a_guest_goes_on_where_it_was_saved(host: Host) -> None:
    disk = make_disk(host.root / "data.img", 16)
    host.xm("create", "image=tiny", "name=web", "memory=192", "vcpus=2", f"disk=file:{disk},xvda,w")
    console = host.ready("web")
    type_line(console, "mkdir -p /data && mount /dev/xvda /data")
    type_line(console, "head -c 300000 /dev/urandom > /tmp/random && cp /tmp/random /data/random && sync")
    digest = type_line(console, "sha256sum < /tmp/random")
    type_line(console, _COUNTER)
    console.close()
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
        last = _counts_on(host, last)
    for _ in range(_CYCLES):
        host.xm("save", "-c", "web", str(saved))
        assert host.domains()["web"]["domid"] == _CYCLES + 1
        last = _counts_on(host, last)
    assert _ask(host, _UNBROKEN) == "unbroken"
    assert _ask(host, "sha256sum < /tmp/random") == digest
    assert _ask(host, "umount /data && mount /dev/xvda /data && sha256sum < /data/random") == digest
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

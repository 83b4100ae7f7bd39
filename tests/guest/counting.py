"""A guest that counts in a file: what a test asks it after it was stopped and went on elsewhere."""

from __future__ import annotations

import subprocess
import uuid

import pexpect

from tests.guest.host import Host, type_line, wait_for
from tests.guest.test_lifecycle import make_disk

COUNTER = "(n=0; while :; do n=$((n+1)); echo $n >> /tmp/n; sleep 0.05; done) &"
UNBROKEN = "seq $(wc -l < /tmp/n) > /tmp/s; head -n $(wc -l < /tmp/s) /tmp/n | cmp - /tmp/s && echo unbroken"


def start_counting(host: Host, vcpus: int, *words: str, qcow2: bool = False) -> str:
    """Start "web", whose disk is a file in the host's root; the digest of what is in its memory and on its disk."""
    disk = f"file:{make_disk(host.root / 'data.img', 16)}"
    if qcow2:
        command = ["qemu-img", "convert", "-O", "qcow2", "data.img", "data.qcow2"]
        subprocess.run(command, check=True, cwd=host.root)
        disk = f"tap:qcow2:{host.root / 'data.qcow2'}"
    host.xm("create", "image=tiny", "name=web", "memory=192", f"vcpus={vcpus}", f"disk={disk},xvda,w", *words)
    console = host.ready("web")
    type_line(console, "mkdir -p /data && mount /dev/xvda /data")
    type_line(console, "head -c 300000 /dev/urandom > /tmp/random && cp /tmp/random /data/random && sync")
    digest = type_line(console, "sha256sum < /tmp/random")
    type_line(console, COUNTER)
    _leave(console)
    return digest


def ask(host: Host, command: str) -> str:
    """What a command prints, marked: the console begins with what was printed before, by a guest since saved."""
    mark = uuid.uuid4().hex[:8]
    console = host.console("web")
    console.sendline(f'echo "{mark[:4]}""{mark[4:]}[$({command})]"')  # in two parts, so that its echo is no answer
    console.expect(rf"{mark}\[([^\]]*)\]")
    answer = str(console.match.group(1))
    _leave(console)
    return answer.strip()


def _leave(console: pexpect.spawn[str]) -> None:
    console.send("\x1d")  # Ctrl-]
    console.expect(pexpect.EOF)
    console.close()


def counted(host: Host) -> int:
    return int(ask(host, "wc -l < /tmp/n"))


def counts_on(host: Host, last: int) -> int:
    """Wait until it has got further than ``last``, which it must not have lost."""
    count = counted(host)
    assert count >= last
    wait_for(lambda: counted(host) > count, "the guest counts on")
    return counted(host)

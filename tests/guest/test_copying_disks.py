"""Live migration of a real guest whose disks the other host doesn't have: they are copied while it runs.

Each side's xend has a mount namespace of its own, in which the same path leads to another folder.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyxen.xend.steps import COPYING, MADE, OUTGOING
from tests.guest.counting import COUNTER, UNBROKEN, ask, counts_on
from tests.guest.host import type_line, wait_for
from tests.guest.pair import Side, exactly_one, migrate, pair, start_migrating, try_migrate
from tests.guest.test_lifecycle import make_disk

WRITER = "(n=0; while :; do n=$((n+1)); echo $n >> /data/n; [ $((n % 20)) = 0 ] && sync; sleep 0.02; done) &"
ON_DISK = "sync; seq $(wc -l < /data/n) > /tmp/t; head -n $(wc -l < /tmp/t) /data/n | cmp - /tmp/t && echo unbroken"
FAULTS = os.environ.get("PYXEN_FAULTS", "copied,switched,made").split(",")


class Hosts:
    """Two sides, of which each sees its own folder at ``path``."""

    def __init__(self, path: Path, sides: tuple[Side, Side]) -> None:
        self.path = path
        self.sides = sides

    def folder(self, side: Side) -> Path:
        """What ``side`` sees at ``path``."""
        return side.root / "own"

    def start_guest(self) -> str:
        """Start a guest on the first side that writes to memory and to both its disks; the digest of what is there."""
        one = self.sides[0]
        raw = make_disk(self.folder(one) / "data.img", 64)
        qcow2 = self.folder(one) / "more.qcow2"
        subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw, qcow2], check=True)
        disks = f"disk=file:{self.path}/data.img,xvda,w", f"disk=tap:qcow2:{self.path}/more.qcow2,xvdb,w"
        config = one.root / "web.cfg"
        listed = ", ".join(f'"{disk.removeprefix("disk=")}"' for disk in disks)
        config.write_text(f'name = "web"\nimage = "tiny"\nmemory = 192\ndisk = [{listed}]\n')
        one.xm("create", "-q", str(config))
        console = one.ready("web")
        type_line(console, "mkdir -p /data /more && mount /dev/xvda /data && mount /dev/xvdb /more")
        type_line(console, "head -c 3000000 /dev/urandom > /data/random && cp /data/random /more/random && sync")
        digest = type_line(console, "sha256sum < /data/random")
        type_line(console, WRITER)
        type_line(console, COUNTER)
        console.close()
        return digest

    def files(self, side: Side) -> list[str]:
        return sorted(os.listdir(self.folder(side)))


@pytest.fixture
def hosts(tiny: Path) -> Iterator[Hosts]:
    if os.geteuid() != 0:
        pytest.skip("a mount namespace needs root")
    path = Path(tempfile.mkdtemp(prefix="pyxen-disks-", dir="/tmp"))

    def see(side: Side) -> None:
        (side.root / "own").mkdir()
        side.inside_of = [
            *("unshare", "--mount", "--propagation", "private", "sh", "-c"),
            'mount --bind "$0" "$1" && shift && exec "$@"',
            *(str(side.root / "own"), str(path)),
        ]

    try:
        with pair(see) as sides:
            yield Hosts(path, sides)
    finally:
        shutil.rmtree(path)


def whole(side: Side, digest: str) -> None:
    """Is all that the guest has written there, in its memory and on the disks themselves?"""
    assert ask(side, UNBROKEN) == "unbroken"
    assert ask(side, ON_DISK) == "unbroken"
    for folder, disk in (("/data", "xvda"), ("/more", "xvdb")):
        again = f"sync; echo 3 > /proc/sys/vm/drop_caches; sha256sum < {folder}/random; cmp /dev/{disk} /dev/{disk}"
        assert ask(side, again) == digest


def test_disks_go_with_the_guest(hosts: Hosts) -> None:
    one, other = hosts.sides
    digest = hosts.start_guest()
    refused = try_migrate(one, other)
    assert "--copy-disks" in refused.stderr
    (hosts.folder(other) / "data.img").write_bytes(b"somebody's")
    refused = try_migrate(one, other, "--copy-disks")
    assert f"{hosts.path}/data.img is there already" in refused.stderr
    assert (hosts.folder(other) / "data.img").read_bytes() == b"somebody's"
    (hosts.folder(other) / "data.img").unlink()
    assert "would fit" in migrate(one, other, "--copy-disks", "--check")
    assert hosts.files(other) == []
    print(migrate(one, other, "--copy-disks").strip())
    assert exactly_one(one, other) is other
    counts_on(other, 0)
    whole(other, digest)
    assert hosts.files(other) == hosts.files(one) == ["data.img", "more.qcow2"]
    copy = (hosts.folder(other) / "data.img").stat()
    assert copy.st_size == 64 << 20
    assert copy.st_blocks * 512 < 40 << 20, "what is empty is not copied"
    for path in hosts.folder(one).iterdir():
        path.unlink()
    print(migrate(other, one, "--copy-disks").strip())
    whole(one, digest)
    one.xm("shutdown", "-w", "web")
    for checked in (["e2fsck", "-fn", "data.img"], ["qemu-img", "check", "-q", "more.qcow2"]):
        done = subprocess.run(checked, cwd=hosts.folder(one), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def test_it_is_called_off_while_disks_are_copied(hosts: Hosts) -> None:
    one, other = hosts.sides
    digest = hosts.start_guest()
    moving = start_migrating(one, other, "--copy-disks", "--bandwidth", "1")
    wait_for(lambda: hosts.files(other), "it has begun")
    one.xm("migrate", "--cancel", "web")
    _, complaint = moving.communicate(timeout=60)
    assert "called off" in complaint
    assert exactly_one(one, other) is one
    assert hosts.files(other) == []
    counts_on(one, 0)
    whole(one, digest)
    migrate(one, other, "--copy-disks")
    whole(other, digest)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("fault", ["kill", "cut"])
def test_a_fault_leaves_it_on_one_side_with_its_disks(hosts: Hosts, fault: str) -> None:
    steps = (*COPYING, *OUTGOING[2:], *MADE) if FAULTS == ["all"] else FAULTS
    one, other = hosts.sides
    digest = hosts.start_guest()
    for step in steps:
        victim = other if step in MADE else one
        victim.start_with({"PYXEN_FAULT": f"{step}:{fault}"})
        try_migrate(one, other, "--copy-disks")
        if fault == "kill":
            wait_for(lambda: victim.dead, f"xend died at {step}")  # noqa: B023
            victim.start()
        has_it = exactly_one(one, other)
        print(f"{step:10} {fault}: it runs on {'the source' if has_it is one else 'the other side'}", flush=True)
        counts_on(has_it, 0)
        whole(has_it, digest)
        if has_it is other:
            break
        wait_for(lambda: hosts.files(other) == [], "what was made there is gone")
    if exactly_one(one, other) is one:
        migrate(one, other, "--copy-disks")
        whole(other, digest)

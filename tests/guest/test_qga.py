"""QEMU's guest agent, Debian's, in a real guest that has no agent of ours."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from pyxen.errors import PyxenError
from pyxen.image import debs
from pyxen.image.cpio import Archive
from tests.guest.host import Host, wait_for

pytestmark = pytest.mark.skipif("PYXEN_TEST_HOST" in os.environ, reason="it needs a package, and a virtio-serial port")
_START = """\
mkdir -p /var/run
tries=0
set -- /dev/vport*p2
while [ ! -c "$1" ] && [ $tries -lt 600 ]; do
  tries=$((tries + 1))
  sleep 0.1
  set -- /dev/vport*p2
done
exec /usr/sbin/qemu-ga -m virtio-serial -p "$1" -t /run -f /run/qga.pid
"""
"""In place of our own agent."""
_ONLINE = ("sh", "-c", "cat /sys/devices/system/cpu/online")
"""The guest's commands are its shell's."""


@pytest.fixture
def guest(host: Host, tiny: Path, tmp_path: Path) -> Host:
    """A host with the guest ``web``: the image tiny, with Debian's package in place of our agent."""
    _describe(host, tiny, tmp_path)
    host.xm("create", "web.cfg")
    wait_for(lambda: host.domains()["web"]["agent"] == "qemu", "the guest's agent has opened its port")
    return host


def test_what_the_agent_does(guest: Host) -> None:
    _commands(guest)
    _files(guest)
    _addresses(guest)
    _quiet_snapshots(guest)
    _the_time_after_a_restore(guest)
    _a_clean_end(guest)


def _commands(guest: Host) -> None:
    done = guest.try_run(
        "xm", "exec", "-e", "X=a b", "-w", "/tmp", "web", "sh", "-c", 'echo "$X $PWD"; echo no >&2; exit 7'
    )
    assert (done.returncode, done.stdout, done.stderr) == (7, "a b /tmp\n", "no\n")
    assert guest.try_run("xm", "exec", "web", "--", "sh", "-c", "kill -9 $$").returncode == 137
    missing = guest.try_run("xm", "exec", "web", "/no/such")
    assert (missing.returncode, missing.stderr) == (
        127,
        "Error: cannot run '/no/such' in 'web': No such file or directory\n",
    )
    data = os.urandom(1 << 20)
    echoed = subprocess.run(
        guest.argv("xm", "exec", "-i", "web", "sh", "-c", "cat"),
        env=guest.environ,
        input=data,
        capture_output=True,
        check=True,
    )
    assert echoed.stdout == data
    guest.xm("vcpu-set", "web", "1")
    assert guest.xm("exec", "web", *_ONLINE) == "0\n"
    guest.xm("vcpu-set", "web", "2")
    wait_for(lambda: guest.xm("exec", "web", *_ONLINE) == "0-1\n", "both are back")


def _files(guest: Host) -> None:
    data = os.urandom(1 << 20)
    (guest.root / "up").write_bytes(data)
    (guest.root / "up").chmod(0o750)
    guest.xm("cp", "up", "web:/tmp")
    assert guest.xm("exec", "web", "sh", "-c", "stat -c '%a %s' /tmp/up") == f"750 {len(data)}\n"
    guest.xm("cp", "web:/tmp/up", "down")
    assert (guest.root / "down").read_bytes() == data
    assert "No such file" in guest.try_run("xm", "cp", "web:/nowhere", ".").stderr


def _addresses(guest: Host) -> None:
    wait_for(lambda: "10.0.2.15/24" in guest.xm("network-list", "web"), "the guest says which address it has")
    said = json.loads(guest.xm("network-list", "--format", "json", "web"))
    assert said["agent"] == "qemu"
    assert said["interfaces"][0]["mac"] == said["vifs"][0]["vif"]["mac"]


def _the_time_after_a_restore(guest: Host) -> None:
    guest.xm("exec", "web", "sh", "-c", "date -s '2001-01-01 00:00:00'")
    saved = guest.root / "web.saved"
    guest.xm("save", "web", str(saved))
    guest.xm("restore", str(saved))
    told = ("exec", "--wait", "60", "web", "sh", "-c", "date +%s")
    wait_for(lambda: abs(int(guest.xm(*told)) - time.time()) < 600, "it is told the time")


def _quiet_snapshots(guest: Host) -> None:
    """The file system is whole in the disk's copy alone; this guest and those that go on from it can write to it."""
    guest.xm("exec", "web", "sh", "-c", "mkdir /data; mount /dev/xvda /data; echo first >/data/note")
    guest.xm("snapshot", "create", "--quiesce", "web", "quiet")
    (copy,) = (guest.root / "state" / "snapshots").glob("*/quiet/xvda")
    read = subprocess.run(["debugfs", "-R", "cat note", copy], capture_output=True, text=True, check=True)
    assert read.stdout == "first\n", "nothing replays its journal"
    guest.xm("exec", "web", "sh", "-c", "echo second >/data/note; sync")
    guest.xm("snapshot", "revert", "web", "quiet")
    again = ("exec", "--wait", "60", "web", "sh", "-c", "cat /data/note; echo third >/data/note; sync")
    assert guest.xm(*again) == "first\n"


def _a_clean_end(guest: Host) -> None:
    """Its power button does nothing."""
    guest.xm("exec", "web", "sh", "-c", "set -- $(ps | grep '[{]head}'); kill $1")
    guest.xm("shutdown", "-w", "web", timeout=120)
    assert "reboot: Power down" in (guest.root / "state" / "console" / "web.log").read_text(errors="replace")


def _describe(host: Host, tiny: Path, scratch: Path) -> None:
    """Write web.cfg: the image's kernel and ramdisk, and one more archive that is unpacked over it."""
    try:
        debs.unpack("qemu-guest-agent", scratch, scratch / "package")
    except PyxenError as error:
        pytest.skip(f"the package can't be had: {error}")
    program = scratch / "package" / "usr" / "sbin" / "qemu-ga"
    linked = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    if "not found" in linked:
        pytest.skip(f"this machine lacks its libraries: {linked}")
    archive = Archive()
    archive.file("lib/pyxen/start-agent", _START.encode(), 0o644)
    archive.file("sbin/shutdown", b"#!/bin/busybox sh\nexec /sbin/poweroff\n", 0o755)
    archive.file("usr/sbin/qemu-ga", program.read_bytes(), 0o755)
    for library in re.findall(r"(/\S+) \(0x", linked):
        archive.file(library.lstrip("/"), Path(library).read_bytes(), 0o755)
    (kernel,) = tiny.glob("*/vmlinuz")
    shutil.copyfile(kernel, host.root / "vmlinuz")
    (host.root / "ramdisk").write_bytes(kernel.with_name("ramdisk").read_bytes() + archive.pack())
    disk = host.root / "data.img"
    disk.write_bytes(b"")
    os.truncate(disk, 16 << 20)
    subprocess.run(["mkfs.ext4", "-q", disk], check=True)
    for path in (host.root / "vmlinuz", host.root / "ramdisk"):
        path.chmod(0o644)
    (host.root / "web.cfg").write_text(
        f'name = "web"\nmemory = 192\nvcpus = 2\nkernel = "{host.root}/vmlinuz"\nramdisk = "{host.root}/ramdisk"\n'
        f'extra = "hostname=web quiet"\nvif = [""]\ndisk = ["file:{disk},xvda,w"]\n'
    )

"""What a user gets wrong: each a clear error, status 1, and nothing left behind."""

from __future__ import annotations

import socket
import subprocess

import pytest

from tests.guest.host import Host


@pytest.fixture(scope="module")
def shared(shared: Host) -> Host:
    """With files that are wrong."""
    (shared.root / "garbage").write_bytes(b"\x00\x01garbage" * 1000)
    (shared.root / "disk.img").write_bytes(bytes(1 << 20))
    (shared.root / "empty.img").touch()
    (shared.root / "nokernel.cfg").write_text("memory = 64\n")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(shared.root / "cut.qcow2"), "1G"], check=True)
    cut = shared.root / "cut.qcow2"
    cut.write_bytes(cut.read_bytes()[:70000])
    return shared


CASES = [
    ("wrong file", ["missing.cfg"], "Unable to open config file: missing.cfg"),
    ("missing kernel", ["kernel=/nowhere/vmlinuz", "name=x"], "kernel /nowhere/vmlinuz does not exist"),
    ("no kernel", ["kernel=garbage", "name=x"], "is not a kernel"),
    ("no kernel at all", ["nokernel.cfg"], "kernel"),
    ("missing disk", ["image=tiny", "name=x", "disk=file:nodisk.img,xvda,w"], "nodisk.img does not exist"),
    ("empty disk", ["image=tiny", "name=x", "disk=file:empty.img,xvda,w"], "is empty"),
    (
        "truncated disk",
        ["image=tiny", "name=x", "disk=format=qcow2,vdev=xvda,access=rw,target=cut.qcow2"],
        "is cut off",
    ),
    ("not qcow2", ["image=tiny", "name=x", "disk=garbage,qcow2,xvda,w"], "is not a qcow2 image"),
    ("too much memory", ["image=tiny", "name=x", "memory=8000000"], "of memory, but only"),
    ("memory is no number", ["image=tiny", "name=x", "memory=lots"], "memory"),
    ("unknown disk form", ["image=tiny", "name=x", "disk=what:is,this"], "disk"),
    ("unknown image", ["image=nothing", "name=x"], "nothing"),
    ("a bad name", ["image=tiny", "name=a b"], "name"),
    ("pv", ["image=tiny", "name=x", "type=pv"], "pv"),
    ("the name of domain 0", ["image=tiny", "name=Domain-0"], "Domain-0"),
    ("maxmem below memory", ["image=tiny", "name=x", "memory=256", "maxmem=128"], "maxmem"),
    ("no such bridge", ["image=tiny", "name=x", "vif=bridge=nobridge9"], "nobridge9"),
    ("KVM that can't", ["image=tiny", "name=x", "accel=kvm"], "kvm"),
    ("the Xen engine", ["image=tiny", "name=x", "engine=xen"], "xen"),
]


@pytest.mark.parametrize(("words", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_create_says_what_is_wrong(shared: Host, words: list[str], expected: str) -> None:
    if expected == "kvm":
        from pyxen.engine.probe import kvm_verdict

        if kvm_verdict(shared.root / "state").usable:
            pytest.skip("KVM works on this machine, so there is nothing to refuse")
    done = shared.try_run("xm", "create", *words)
    assert done.returncode == 1, done.stdout
    first = done.stderr.splitlines()[0]
    assert first.startswith("Error: ") or "Error: " in done.stderr
    assert expected.lower() in done.stderr.lower()
    assert "Traceback" not in done.stderr + done.stdout
    nothing_left(shared)


def nothing_left(host: Host) -> None:
    assert host.domains() == {}
    assert list((host.root / "run" / "domains").iterdir()) == []
    assert [line for line in host.processes().values() if "qemu-system" in line.split(" ")[0]] == []


def test_a_used_name(shared: Host) -> None:
    shared.xm("create", "-p", "image=tiny", "name=used", "memory=128")
    done = shared.try_run("xm", "create", "image=tiny", "name=used", "memory=128")
    assert done.returncode == 1
    assert "Error: Domain 'used' already exists with ID" in done.stderr
    shared.xm("destroy", "used")
    nothing_left(shared)


def test_a_port_in_use(shared: Host) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = shared.try_run("xm", "create", "image=tiny", "name=x", "memory=128", f"vif=forward={port}:22")
    assert done.returncode == 1
    assert f"port {port}" in done.stderr
    assert "in use" in done.stderr
    nothing_left(shared)


def test_one_disk_is_not_written_by_two(shared: Host) -> None:
    disk = "disk=file:disk.img,xvda,w"
    shared.xm("create", "-p", "image=tiny", "name=one", "memory=128", disk)
    done = shared.try_run("xm", "create", "-p", "image=tiny", "name=two", "memory=128", disk)
    assert done.returncode == 1
    assert "is in use by domain 'one'" in done.stderr
    shared.xm("destroy", "one")
    for name in ("one", "two"):
        shared.xm("create", "-p", "image=tiny", f"name={name}", "memory=128", "disk=file:disk.img,xvda,w!")
    for name in ("one", "two"):
        shared.xm("destroy", name)
    for name in ("one", "two"):
        shared.xm("create", "-p", "image=tiny", f"name={name}", "memory=128", "disk=file:disk.img,xvda,r")
    for name in ("one", "two"):
        shared.xm("destroy", name)
    nothing_left(shared)


def test_an_unknown_domain_has_a_status_of_its_own(shared: Host) -> None:
    done = shared.try_run("xm", "destroy", "nobody")
    assert done.returncode == 3
    assert done.stderr.splitlines()[0] == "Error: Domain 'nobody' does not exist."


def test_domain_0_is_not_to_be_destroyed(shared: Host) -> None:
    for command in ("destroy", "pause", "shutdown"):
        done = shared.try_run("xm", command, "Domain-0")
        assert done.returncode == 1
        assert "privileged domain" in done.stderr


def test_without_xend_the_error_says_how_to_start_it() -> None:
    host = Host()
    try:
        done = host.try_run("xm", "list")
        assert done.returncode == 1
        assert "xend is not running" in done.stderr
        assert "xend start" in done.stderr
    finally:
        host.stop()

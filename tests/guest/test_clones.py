"""Clones as guests see them: each with a name, random numbers, an identity and addresses of its own."""

from __future__ import annotations

import json
import re
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from pyxen.xend.steps import CLONE, WAIT
from tests.guest.host import Host, type_line, wait_for
from tests.guest.test_network import HOST, BridgedHost, bridged

__all__ = ["bridged"]


def folder(host: Host, name: str) -> Path:
    return host.root / "run" / "domains" / str(host.domains()[name]["domid"])


def told(host: Host, name: str) -> None:
    """Wait until the guest has been told who it is."""
    wait_for(lambda: not json.loads((folder(host, name) / "domain.json").read_text()).get("waking"), f"{name} is told")


def waits(host: Host) -> None:
    """Wait until something waits for the next clone, on the engine that has that."""
    if host.domains()["web"]["engine"] != "qemu":
        return
    wait_for(lambda: json.loads(host.xm("info", "--format", "json"))["clones_waiting"], "one waits")


def run(host: Host, name: str, command: str) -> str:
    return host.xm("exec", name, "--", "sh", "-c", command).strip()


def qmp(host: Host, name: str, command: str) -> Any:
    """QEMU's own answer."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(30)
        connection.connect(str(folder(host, name) / "control.sock"))
        lines = connection.makefile("rwb")
        lines.readline()
        for word in ("qmp_capabilities", command):
            lines.write(json.dumps({"execute": word}).encode() + b"\n")
            lines.flush()
            answer = json.loads(lines.readline())
        return answer["return"]


@pytest.fixture
def source(host: Host) -> Host:
    host.xm("create", "image=tiny", "name=web", "memory=128")
    host.ready("web").close()
    run(host, "web", "echo 0123456789abcdef0123456789abcdef > /etc/machine-id")
    host.xm("snapshot", "create", "web", "base")
    return host


def test_two_clones_are_two_machines(source: Host) -> None:
    look = "cat /proc/sys/kernel/hostname /etc/machine-id; dd if=/dev/urandom bs=32 count=1 2>/dev/null | md5sum"
    seen = []
    for name in ("one", "two"):
        source.xm("clone", "-q", "-s", "base", "web", name)
        told(source, name)
        waits(source)  # "two" is what has waited
        seen.append(run(source, name, look).split()[:3])
    assert [name for name, _, _ in seen] == ["one", "two"]
    assert len({machine for _, machine, _ in seen} | {run(source, "web", "cat /etc/machine-id")}) == 3
    assert len({random for _, _, random in seen}) == 2
    assert run(source, "web", "cat /proc/sys/kernel/hostname") == "web"


def test_one_that_is_paused_knows_the_time_when_it_runs(source: Host) -> None:
    for name in ("one", "two"):
        source.xm("clone", "-q", "-p", "-s", "base", "web", name)
        waits(source)
    time.sleep(3)
    for name in ("one", "two"):
        source.xm("unpause", name)
        told(source, name)
        assert abs(int(run(source, name, "date +%s")) - time.time()) < 2


def test_clones_on_a_bridge_have_addresses_of_their_own(bridged: BridgedHost) -> None:
    bridged.xm("create", "image=tiny", "name=web", "memory=128", "vif=bridge=br0")
    console = bridged.ready("web")
    type_line(console, "ip address add 10.77.0.2/24 dev eth0")
    console.close()
    bridged.xm("snapshot", "create", "web", "base")
    bridged.xm("clone", "-q", "-s", "base", "web", "first")
    waits(bridged)
    bridged.xm("destroy", "first")
    bridged.xm("clone", "-q", "-s", "base", "web", "one")
    number = bridged.domains()["one"]["domid"]
    told(bridged, "one")
    described = json.loads((folder(bridged, "one") / "domain.json").read_text())["config"]["vif"][0]["mac"]
    own = {name: run(bridged, name, "cat /sys/class/net/eth0/address") for name in ("web", "one")}
    assert own["one"] == described != own["web"]
    ports = bridged.ip("-n", bridged.name, "-o", "link", "show", "master", "br0").stdout
    assert re.findall(r"vif\d+\.0", ports) == ["vif1.0", f"vif{number}.0"]
    # Both are heard at once, each at its own port. (A bridge lets nothing through in a new port's first seconds.)
    run(bridged, "one", "ip address flush dev eth0; ip address add 10.77.0.3/24 dev eth0")
    ping = ("ping", "-c", "1", "-W", "2", HOST)
    for name in ("one", "web"):
        wait_for(
            lambda: bridged.try_run("xm", "exec", name, "--", *ping).returncode == 0,  # noqa: B023
            f"{name} has an answer",
        )
    neighbours = bridged.ip("-n", bridged.name, "neigh").stdout
    for name, address in (("web", "10.77.0.2"), ("one", "10.77.0.3")):
        assert re.search(rf"^{address} .*{own[name]}", neighbours, re.MULTILINE)


def test_an_hvm_guest_gets_another_generation_id(host: Host) -> None:
    host.xm("create", "image=tiny", "type=hvm", "name=web", "memory=192")
    host.ready("web", timeout=180).close()
    assert "QEMUVGID:00" in run(host, "web", "ls /sys/bus/acpi/devices")
    first = qmp(host, "web", "query-vm-generation-id")["guid"]
    host.xm("snapshot", "create", "web", "base")
    assert qmp(host, "web", "query-vm-generation-id")["guid"] == first, "it goes on where it was"
    ids = [first]
    for name in ("one", "two"):
        host.xm("clone", "-q", "-s", "base", "web", name)
        ids.append(qmp(host, name, "query-vm-generation-id")["guid"])
    host.xm("snapshot", "revert", "web", "base")
    ids.append(qmp(host, "web", "query-vm-generation-id")["guid"])
    assert len(set(ids)) == 4
    assert run(host, "one", "echo still there") == "still there"


@pytest.mark.timeout(600)
def test_a_xend_that_dies_leaves_nothing_that_waits(host: Host) -> None:
    disk = host.root / "data.img"
    disk.write_bytes(b"before" + bytes(1 << 20))
    host.xm("create", "image=tiny", "name=web", "memory=128", "engine=qemu", f"disk=file:{disk},xvda,w")
    host.ready("web").close()
    host.xm("snapshot", "create", "web", "base")
    folders, disks = host.root / "run" / "domains", host.root / "state" / "disks"
    for step in (*WAIT, *CLONE[:-1]):
        host.start_with({"PYXEN_FAULT": f"{step}:kill"})
        host.xm("clone", "-q", "-s", "base", "web", "one")
        if step in CLONE:
            waits(host)
            assert host.try_run("xm", "clone", "-q", "-s", "base", "web", "two").returncode == 1
        wait_for(lambda: host.dead, f"xend dies at {step}")
        host.start()
        found = host.domains()
        assert sorted(found) == ["one", "web"], step
        assert sorted(int(path.name) for path in folders.iterdir()) == sorted(each["domid"] for each in found.values())
        assert [path.name for path in disks.iterdir()] == ["one-xvda.img"], step
        monitors = {pid for pid, line in host.processes().items() if "qemu-system" in line.split(" ")[0]}
        assert monitors == {each["pid"] for each in found.values()}, step
        assert run(host, "one", "head -c 6 /dev/vda") == "before"
        host.xm("destroy", "one")
        (disks / "one-xvda.img").unlink()

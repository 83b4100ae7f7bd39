"""Domains on a bridge. All of it, xend too, is in a network name space of the test's own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.host import Host, type_line, wait_for

HOST, GUEST = "10.77.0.1", "10.77.0.2"
READ = "import socket, sys; print(socket.create_connection((sys.argv[1], 7777), 30).makefile().readline(), end='')"


class BridgedHost(Host):
    """xm and xend in the name space NAME, where there is a bridge br0."""

    def __init__(self) -> None:
        super().__init__()
        self.name = self.root.name

    def make_network(self) -> None:
        """Skips the test where the kernel or a missing right forbids it."""
        for words in (
            ["netns", "add", self.name],
            ["-n", self.name, "link", "set", "lo", "up"],
            ["-n", self.name, "link", "add", "br0", "type", "bridge"],
            ["-n", self.name, "addr", "add", f"{HOST}/24", "dev", "br0"],
            ["-n", self.name, "link", "set", "br0", "up"],
        ):
            done = self.ip(*words)
            if done.returncode:
                pytest.skip(f"ip {' '.join(words)}: {done.stderr.strip()}")

    def argv(self, *words: str) -> list[str]:
        return self.inside(*super().argv(*words))

    def inside(self, *words: str) -> list[str]:
        return ["ip", "netns", "exec", self.name, *words]

    def ip(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["ip", *words], capture_output=True, text=True, check=False)

    def devices(self) -> set[str]:
        """The name space's network devices."""
        rows = self.ip("-n", self.name, "-o", "link").stdout.splitlines()
        return {row.split(": ")[1].partition("@")[0] for row in rows}

    def stop(self) -> list[str]:
        leftovers = super().stop()
        self.ip("netns", "delete", self.name)
        return leftovers


@pytest.fixture
def bridged(tiny: Path) -> Iterator[BridgedHost]:
    if os.geteuid() != 0:
        pytest.skip("a network name space needs root")
    if not Path("/dev/net/tun").exists():
        pytest.skip("there is no /dev/net/tun")
    host = BridgedHost()
    try:
        host.make_network()
        host.start()
        yield host
    finally:
        leftovers = host.stop()
    assert not leftovers, f"left behind: {leftovers}"


def test_a_guest_on_a_bridge_hears_and_is_heard(bridged: BridgedHost) -> None:
    before = bridged.devices()
    assert before == {"lo", "br0"}
    bridged.xm("create", "image=tiny", "name=web", "memory=192", "vif=bridge=br0")
    assert bridged.devices() - before == {"vif1.0"}
    console = bridged.ready("web")
    wait_for(lambda: "eth0" in type_line(console, "ls /sys/class/net"), "the guest has its card")
    type_line(console, f"ip link set eth0 up; ip addr add {GUEST}/24 dev eth0")
    assert "1 packets received" in type_line(console, f"ping -c 1 -W 20 {HOST}")
    console.sendline("echo hello from the guest | nc -l -p 7777 &")
    console.expect("# ")
    wait_for(lambda: ":1E61 " in type_line(console, "cat /proc/net/tcp /proc/net/tcp6"), "the guest listens")
    heard = subprocess.run(
        bridged.inside(sys.executable, "-c", READ, GUEST), capture_output=True, text=True, timeout=60, check=False
    )
    assert (heard.stdout, heard.stderr) == ("hello from the guest\n", "")
    console.close()
    bridged.xm("destroy", "web")
    assert bridged.devices() == before


def test_names_and_rates_of_cards(bridged: BridgedHost) -> None:
    vif = "vif=bridge=br0,vifname=web-net,rate=1MB/s,mac=00:16:3e:12:34:56"
    done = bridged.try_run("xm", "create", "-p", "image=tiny", "name=web", "memory=128", vif)
    assert done.returncode == 0, done.stderr
    assert bridged.devices() == {"lo", "br0", "web-net"}
    limits = bridged.inside("tc", "filter", "show", "dev", "web-net", "parent", "ffff:")
    shown = subprocess.run(limits, capture_output=True, text=True, check=True).stdout
    # Not every kernel can: then the user is told, and the domain starts all the same.
    assert "rate 8Mbit" in shown or "vif 0: rate is not kept" in done.stderr
    changed = bridged.try_run("xm", "network-limit", "web", "0", "2MB/s")
    shown = subprocess.run(limits, capture_output=True, text=True, check=True).stdout
    assert "rate 16Mbit" in shown or "vif 0 of 'web' can't be limited" in changed.stderr
    assert bridged.try_run("xm", "network-limit", "web", "0", "none").returncode == 0
    assert "rate" not in subprocess.run(limits, capture_output=True, text=True, check=True).stdout
    for other, expected in (
        ("vif=bridge=br0,vifname=web-net", "there is a network device web-net already"),
        ("vif=bridge=br0,mac=00:16:3e:12:34:56", "MAC 00:16:3e:12:34:56 is in use by domain 'web'"),
        ("vif=bridge=br9", "there is no bridge br9"),
        ("vif=bridge=lo", "lo is a network device, but not a bridge"),
    ):
        refused = bridged.try_run("xm", "create", "-p", "image=tiny", "name=two", "memory=128", other)
        assert refused.returncode == 1
        assert refused.stderr.startswith(f"Error: {expected}"), refused.stderr
        assert bridged.devices() == {"lo", "br0", "web-net"}
    bridged.xm("destroy", "web")
    assert bridged.devices() == {"lo", "br0"}


def test_a_card_outlives_xend_and_not_its_domain(bridged: BridgedHost) -> None:
    bridged.xm("create", "-p", "image=tiny", "name=web", "memory=128", "vif=bridge=br0")
    bridged.kill_xend()
    assert "vif1.0" in bridged.devices()
    bridged.start()
    bridged.xm("destroy", "web")
    assert bridged.devices() == {"lo", "br0"}

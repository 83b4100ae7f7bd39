"""USB devices of a running HVM guest, a Debian with a kernel that knows USB: a stick, and a device by usbredir.

Those of the host are tried in the test host, which has some.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from pyxen.image import debs, tiny
from tests.guest.host import PROMPT, Host, type_line, wait_for
from tests.guest.packages import package
from tests.guest.usbredir import NAME, Peer

pytestmark = pytest.mark.skipif("PYXEN_TEST_HOST" in os.environ, reason="there is no package to be had in there")
MODULES = ("xhci_pci", "ehci_pci", "uhci_hcd", "usb_storage", "sd_mod", "usbhid", "hid_generic")


@pytest.fixture
def peer() -> Iterator[Peer]:
    peer = Peer()
    yield peer
    peer.close()


@pytest.fixture
def words(host: Host, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What describes a domain with such a kernel."""
    source = debs.find_package("linux-image-amd64")
    kernel = debs.fetch(
        debs.KernelSource("", release=source.package.removeprefix("linux-image-")),
        host.root,
        root=package(source.package),
    )
    monkeypatch.setattr(tiny, "MODULES", (*tiny.MODULES, *MODULES))
    ramdisk = host.root / "ramdisk"
    ramdisk.write_bytes(tiny.make_ramdisk(kernel.modules))
    return ["type=hvm", "memory=256", "extra=quiet", f"kernel={kernel.vmlinuz}", f"ramdisk={ramdisk}"]


def _image(path: Path, text: str) -> Path:
    path.write_bytes(text.encode().ljust(1 << 20, b"\0"))
    return path


def _listed(host: Host, name: str = "box") -> dict[int, str]:
    found = json.loads(host.xm("usb-list", "--format", "json", name))["usb"]
    return {each["number"]: each["state"] for each in found}


def _refused(host: Host, *words: str) -> str:
    done = host.try_run("xm", *words)
    assert done.returncode == 1, done
    return done.stderr


def _back(host: Host) -> pexpect.spawn[str]:
    """The console of a guest that went on, at a prompt."""
    console = host.console("box")
    console.sendline("echo back-$((1 + 1))")
    console.expect("back-2")
    console.expect(PROMPT)
    return console


@pytest.mark.timeout(600)
def test_usb_devices_come_and_go(host: Host, words: list[str], peer: Peer) -> None:
    stick, other = _image(host.root / "a.img", "the first stick\n"), host.root / "b.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(other), "3M"], check=True)
    host.xm("create", *words, "name=box")
    console = host.ready("box", timeout=180)
    type_line(console, "for m in usb_storage sd_mod; do modprobe $m; done")

    def sectors(disk: str) -> str:
        return type_line(console, f"cat /sys/block/{disk}/size 2>/dev/null || echo none")

    def products() -> str:
        return type_line(console, "cat /sys/bus/usb/devices/*/product 2>/dev/null")

    # The first one brings the controller along, and the guest its driver.
    host.xm("usb-attach", "box", f"disk:{stick}")
    wait_for(lambda: sectors("sda") == "2048", "the guest has the stick")
    assert type_line(console, "head -n 1 /dev/sda") == "the first stick"
    type_line(console, "echo written | dd of=/dev/sda conv=fsync 2>/dev/null")
    assert stick.read_bytes().startswith(b"written\n")
    host.xm("usb-attach", "box", "readonly=1", f"disk:{other}")
    wait_for(lambda: sectors("sdb") == "6144", "the guest has the other one")
    assert type_line(console, "cat /sys/block/sdb/ro") == "1"
    assert host.xm("usb-list", "box").splitlines() == [
        "Idx State     Device",
        f"0   attached  format=raw,disk:{stick}",
        f"1   attached  format=qcow2,readonly=1,disk:{other}",
    ]

    # By usbredir: what the guest sees is what the peer says.
    host.xm("usb-attach", "box", f"redir={peer.address}")
    wait_for(lambda: NAME in products(), "the guest has the peer's device")
    assert "1209" in type_line(console, "cat /sys/bus/usb/devices/*/idVendor")
    refused = _refused(host, "save", "box", str(host.root / "saved"))
    assert f"has the USB device at {peer.address}, which would be in another state" in refused
    peer.hang_up()
    wait_for(lambda: NAME not in products(), "the guest has seen it go")
    host.xm("usb-detach", "box", "2")
    assert _listed(host) == {0: "attached", 1: "attached"}
    peer.close()
    assert f"nobody speaks usbredir at {peer.address}" in _refused(host, "usb-attach", "box", f"redir={peer.address}")

    # What can't be.
    assert "does not exist" in _refused(host, "usb-attach", "box", "disk:/nowhere.img")
    assert "is already used" in _refused(host, "usb-attach", "box", f"disk:{stick}")
    assert "this host has no USB device 046d:c077" in _refused(host, "usb-attach", "box", "host:046d:c077")
    assert "is in use by domain 'box'" in _refused(host, "create", *words, "name=two", f"usbdev=disk:{stick}")
    assert "which no copy is made of" in _refused(host, "snapshot", "create", "box", "now")
    assert "Cannot find device '5'" in _refused(host, "usb-detach", "box", "5")
    assert _listed(host) == {0: "attached", 1: "attached"}

    # A saved state has them at their ports, a later xend knows of them.
    host.xm("save", "box", str(host.root / "saved"))
    host.xm("restore", str(host.root / "saved"))
    console = _back(host)
    wait_for(lambda: sectors("sda") == "2048", "the stick is there still")
    assert type_line(console, "dd if=/dev/sda iflag=direct bs=512 count=1 2>/dev/null | head -n 1") == "written"
    host.kill_xend()
    host.start()
    assert _listed(host) == {0: "attached", 1: "attached"}
    console = _back(host)
    host.xm("usb-detach", "box", "0")
    wait_for(lambda: sectors("sda") == "none", "the stick is gone")
    assert _listed(host) == {1: "attached"}
    open_files = os.listdir(f"/proc/{host.domains()['box']['pid']}/fd")
    host.xm("usb-attach", "box", f"disk:{stick}")
    wait_for(lambda: "2048" in (sectors("sda"), sectors("sdc")), "it is back")
    host.xm("usb-detach", "box", "0")
    wait_for(lambda: _listed(host) == {1: "attached"}, "it is gone again")
    assert len(os.listdir(f"/proc/{host.domains()['box']['pid']}/fd")) == len(open_files)
    host.xm("destroy", "box")


@pytest.mark.timeout(600)
def test_usb_devices_from_the_start(host: Host, words: list[str], peer: Peer) -> None:
    stick = _image(host.root / "a.img", "from the start\n")
    devices = [f"usbdev=disk:{stick}", f"usbdev=devid=4,redir={peer.address}", "usbdevice=tablet", "hdtype=ahci"]
    host.xm("create", *words, "name=box", *devices)
    console = host.ready("box", timeout=180)
    type_line(console, "for m in usb_storage sd_mod; do modprobe $m; done")
    wait_for(lambda: type_line(console, "head -n 1 /dev/sda") == "from the start", "the stick")
    seen = "cat /sys/bus/usb/devices/*/product 2>/dev/null"
    wait_for(lambda: NAME in type_line(console, seen), "the peer's device")
    assert "QEMU USB Tablet" in type_line(console, seen)
    assert _listed(host) == {0: "attached", 4: "attached"}
    host.xm("usb-detach", "box", "0")
    wait_for(lambda: _listed(host) == {4: "attached"}, "the stick is gone")
    host.xm("reboot", "-w", "box", timeout=300)
    console = host.ready("box", timeout=180)
    wait_for(lambda: NAME in type_line(console, seen), "the peer's device is there in its next life")
    assert peer.connections == 2
    host.xm("destroy", "box")


def test_who_has_no_usb_and_no_pci(host: Host) -> None:
    host.xm("create", "image=tiny", "name=web", "memory=128")
    stick = _image(host.root / "a.img", "x")
    for order in (["usb-attach", "web", f"disk:{stick}"], ["pci-attach", "web", "03:00.0"]):
        assert "'web' is a pvh domain, and these have no" in _refused(host, *order)
    assert "a pvh domain has neither" in _refused(host, "create", "image=tiny", "name=two", f"usbdev=disk:{stick}")
    assert (host.xm("usb-list", "web"), host.xm("pci-list", "web")) == ("", "")
    host.xm("destroy", "web")


def test_pci_devices_of_a_host_without_an_iommu(host: Host) -> None:
    if any(Path("/sys/kernel/iommu_groups").glob("*")):
        pytest.skip("this host has one")
    listed = json.loads(host.xm("pci-list-assignable-devices", "--format", "json"))
    assert "IOMMU" in listed["problem"] and listed["hint"]
    said = host.try_run("xm", "pci-list-assignable-devices")
    assert (said.returncode, said.stdout) == (0, "") and f"Warning: {listed['problem']}" in said.stderr
    there = [each["address"] for each in listed["devices"]]
    for address in there[:1]:
        assert listed["problem"] in _refused(host, "pci-assignable-add", address)
        create = ["create", "type=hvm", "name=box", "memory=64", f"pci={address}"]
        assert listed["problem"] in _refused(host, *create)
        assert listed["problem"] in _refused(host, *create[:-1], f"pci={address},seize=1")
        assert "its driver is" in _refused(host, "pci-assignable-remove", address)
    assert "this host has no PCI device 00ff:00:00.0" in _refused(host, "pci-assignable-add", "ff:0:0.0")
    assert host.domains() == {}

"""Devices of the host in a made sysfs: what is seen, what is refused and why, what is bound to what."""

from __future__ import annotations

import os
import resource
import socket
from pathlib import Path

import pytest

from pyxen.config.model import DomainConfig, DomainType, PciDevice, UsbDevice, UsbType
from pyxen.engine.contract import DomainSpec
from pyxen.engine.passthrough import binding, pci, redir, usb, vfio
from pyxen.engine.passthrough.tree import HostTree
from pyxen.errors import Conflict, EngineError, NotFound, PyxenError, Unavailable, Unsupported
from tests.unit.engine.host_tree import BRIDGE, DISK, NIC, SCREEN, SOUND, MadeTree, make_tree


@pytest.fixture
def tree(tmp_path: Path) -> MadeTree:
    return make_tree(tmp_path)


def running(name: str, *, devices: tuple[str, ...] = (), usbdev: tuple[UsbDevice, ...] = ()) -> DomainSpec:
    config = DomainConfig(name=name, type=DomainType.HVM, memory=512, pci=tuple(map(PciDevice, devices)), usbdev=usbdev)
    return DomainSpec(domid=1, uuid="u", config=config)


def test_what_there_is(tree: MadeTree) -> None:
    names = tree.share / "misc"
    names.mkdir(parents=True)
    (names / "pci.ids").write_text(
        "# a list\n8086  Intel Corporation\n\t10d3  82574L Gigabit\n\t\t8086 a01f  a board\n"
        "C 02  Network\n\t00  Ethernet\n"
    )
    found = {each.address: each for each in pci.devices(tree)}
    assert list(found) == sorted((SCREEN, DISK, BRIDGE, NIC, SOUND))
    nic = found[NIC]
    assert (nic.label, nic.kind, nic.driver, nic.group) == (
        "Intel Corporation 82574L Gigabit",
        "network controller",
        "e1000e",
        12,
    )
    assert (nic.used, nic.assignable, nic.bridge, found[BRIDGE].bridge) == ("", False, False, True)
    assert found[DISK].used == "disk sda1 is mounted on /"
    assert found[SCREEN].used == "it is the screen that this host started with"
    assert [each.address for each in pci.group_members(tree, 12)] == [NIC, SOUND]
    with pytest.raises(NotFound, match=r"no PCI device 0000:09:00\.0"):
        pci.device(tree, "0000:09:00.0")


def test_without_names_a_device_is_known_by_its_numbers(tree: MadeTree) -> None:
    assert pci.device(tree, NIC).label == "network controller 8086:10d3"


@pytest.mark.parametrize(
    ("kind", "name", "facts", "used"),
    [
        ("net", "eth0", {"flags": "0x1003\n"}, "network interface eth0 is up"),
        ("net", "eth0", {"flags": "0x1002\n"}, ""),
        ("block", "nvme0n1", {"dev": "259:0\n"}, ""),
        ("block", "nvme0n1p2", {"dev": "259:2\n"}, "disk nvme0n1p2 is used to swap"),
        ("block", "nvme0n1p1", {"dev": "259:1\n"}, "disk nvme0n1p1 is mounted on /srv/a"),
    ],
)
def test_what_the_host_does_with_a_device(
    tree: MadeTree, kind: str, name: str, facts: dict[str, str], used: str
) -> None:
    (tree.proc / "swaps").write_text("Filename Type\n/dev/nvme0n1p2 partition 1 0 -2\n")
    (tree.proc / "1/mountinfo").write_text("30 1 0:31 / /srv/a rw - btrfs /dev/nvme0n1p1 rw\n")
    tree.add_below(kind, name, tree.sys / "bus/pci/devices" / NIC, **facts)
    assert pci.device(tree, NIC).used == used
    if used:
        with pytest.raises(Conflict, match=rf"{NIC} .* is in use by the host: {used}"):
            binding.take(tree, NIC)


def test_a_disk_under_another_device_is_in_use(tree: MadeTree) -> None:
    place = tree.add_below("block", "sdb", tree.sys / "bus/pci/devices" / NIC, dev="8:16\n")
    (place / "holders").mkdir()
    (place / "holders" / "dm-0").touch()
    assert pci.device(tree, NIC).used == "disk sdb is a part of dm-0"


@pytest.mark.parametrize(
    ("table", "cmdline", "cpu", "reason", "hint"),
    [
        ("", "quiet", "vmx", "neither of the ACPI tables DMAR", "firmware's set-up"),
        ("", "quiet", "vmx hypervisor", "this host has no IOMMU", "It is a virtual machine itself"),
        ("DMAR", "quiet", "vmx", r"\(Intel VT-d\) is there", "Put intel_iommu=on on the kernel's command line"),
        ("DMAR", "intel_iommu=on", "vmx", "does not use it", "dmesg"),
        ("DMAR", "intel_iommu=on iommu=off", "vmx", "does not use it", "Take iommu=off off"),
        ("IVRS", "quiet", "svm", r"\(AMD-Vi\) is there", "dmesg"),
    ],
)
def test_why_there_is_no_iommu(tmp_path: Path, table: str, cmdline: str, cpu: str, reason: str, hint: str) -> None:
    tree = make_tree(tmp_path, iommu=False)
    if table:
        (tree.sys / "firmware/acpi/tables" / table).touch()
    (tree.proc / "cmdline").write_text(cmdline)
    (tree.proc / "cpuinfo").write_text(f"flags : {cpu}")
    with pytest.raises(Unsupported, match=reason) as caught:
        pci.check_iommu(tree)
    assert hint in (caught.value.hint or "")
    with pytest.raises(Unsupported, match=reason):
        binding.take(tree, NIC)
    assert tree.driver(NIC) == "e1000e"


def test_a_device_is_taken_and_given_back(tree: MadeTree) -> None:
    binding.take(tree, NIC)
    assert (tree.driver(NIC), tree.driver(SOUND)) == ("vfio-pci", "snd_hda_intel")
    binding.take(tree, NIC)
    binding.give_back(tree, NIC, "e1000e")
    assert tree.driver(NIC) == "e1000e"
    binding.take(tree, NIC)
    binding.give_back(tree, NIC, None)  # nobody knows any more: the kernel finds one
    assert tree.driver(NIC) == "e1000e"


def test_what_can_not_be_taken(tree: MadeTree) -> None:
    with pytest.raises(Conflict, match="disk sda1 is mounted on /"):
        binding.take(tree, DISK)
    with pytest.raises(Conflict, match="the screen that this host started with"):
        binding.take(tree, SCREEN)
    with pytest.raises(Unsupported, match=f"{BRIDGE} is a bridge"):
        binding.take(tree, BRIDGE)
    tree.add_pci("0000:04:00.0", 0x020000, "e1000e", None)
    with pytest.raises(Unsupported, match=r"0000:04:00\.0 is in no IOMMU group"):
        binding.take(tree, "0000:04:00.0")
    tree.broken.add("vfio-pci")
    with pytest.raises(EngineError, match=f"{NIC} can't be bound to vfio-pci: the kernel did not bind it"):
        binding.take(tree, NIC)
    assert tree.driver(NIC) == "e1000e"


def test_a_kernel_without_the_driver(tree: MadeTree, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("bind", "unbind"):
        (tree.sys / "bus/pci/drivers/vfio-pci" / name).unlink()
    (tree.sys / "bus/pci/drivers/vfio-pci").rmdir()
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(Unsupported, match="no driver vfio-pci: there is no modprobe here"):
        binding.take(tree, NIC)
    program = tmp_path / "modprobe"
    program.write_text("#!/bin/sh\necho 'modprobe: FATAL: Module vfio-pci not found' >&2; exit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(Unsupported, match="no driver vfio-pci: modprobe: FATAL: Module vfio-pci not found"):
        binding.take(tree, NIC)
    program.write_text(f"#!/bin/sh\nmkdir {tree.sys}/bus/pci/drivers/vfio-pci\n")
    binding.load_driver(tree)


def test_who_may_not_write(tree: MadeTree, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: HostTree, path: Path, text: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(MadeTree, "write", refuse)
    with pytest.raises(EngineError, match="only root's xend may do this"):
        binding.take(tree, NIC)


def free(tree: MadeTree, name: str, *addresses: str, others: tuple[DomainSpec, ...] = ()) -> str:
    """Why a domain can't have devices; empty if it can."""
    try:
        vfio.check_free(tree, name, map(PciDevice, addresses), others)
    except PyxenError as error:
        return f"{error.message} | {error.hint}"
    return ""


def test_a_group_goes_as_a_whole(tree: MadeTree) -> None:
    assert "is not assignable: it has the driver e1000e | Take it from the host: xm pci-assignable-add" in free(
        tree, "web", NIC
    )
    binding.take(tree, NIC)
    refused = free(tree, "web", NIC)
    assert f"{NIC} shares IOMMU group 12 with {SOUND} (multimedia controller 8086:10d3)" in refused
    assert (
        "which the host has: its driver is snd_hda_intel | A group goes to a domain as a whole: xm pci-assi" in refused
    )
    binding.take(tree, SOUND)
    assert free(tree, "web", NIC) == ""
    other = running("other", devices=(SOUND,))
    assert f"with {SOUND} (multimedia controller 8086:10d3), which domain 'other' has" in free(
        tree, "web", NIC, others=(other,)
    )
    assert "is in use by domain 'other'" in free(tree, "web", SOUND, others=(other,))
    assert free(tree, "other", NIC, others=(other,)) == ""


def test_the_group_is_opened_to_the_domains_user_and_closed_again(tree: MadeTree) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    node = tree.dev / "vfio/12"
    vfio.open_to(tree, [PciDevice(NIC)], 4711)
    assert node.stat().st_uid == 4711
    vfio.close_again(tree, [PciDevice(NIC)], kept=[PciDevice(SOUND)])
    assert node.stat().st_uid == 4711
    vfio.close_again(tree, [PciDevice(NIC), PciDevice("0000:09:00.0")])
    assert node.stat().st_uid == 0
    node.unlink()
    with pytest.raises(EngineError, match=r"vfio/12 is missing, though 0000:03:00\.0 is bound"):
        vfio.open_to(tree, [PciDevice(NIC)], 4711)


def test_a_group_that_a_process_has_open(tree: MadeTree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vfio, "_LET_GO_S", 0.1)
    vfio.check_unused(tree, pci.device(tree, NIC))
    (tree.proc / "77/fd").mkdir(parents=True)
    (tree.proc / "77/comm").write_text("qemu\n")
    (tree.proc / "77/fd/4").symlink_to("socket:[1]")
    vfio.check_unused(tree, pci.device(tree, NIC))
    (tree.proc / "77/fd/5").symlink_to(tree.dev / "vfio/12")
    reason = rf"IOMMU group 12, in which {SOUND} is, is in use by process 77 \(qemu\)"
    with pytest.raises(Conflict, match=reason):
        vfio.check_unused(tree, pci.device(tree, SOUND))
    vfio.check_unused(tree, pci.device(tree, DISK))


def test_how_much_memory_may_be_locked(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = running("web", devices=(NIC,))
    assert vfio.locked_bytes(spec) == 1536 << 20
    monkeypatch.setattr(vfio, "_may_raise_limits", lambda: True)
    assert vfio.lock_words(spec)[1:] == [f"--memlock={1536 << 20}:{1536 << 20}"]
    assert vfio.lock_words(running("web")) == []
    monkeypatch.setattr(vfio, "_may_raise_limits", lambda: False)
    monkeypatch.setattr(resource, "getrlimit", lambda which: (8 << 20, 8 << 20))
    with pytest.raises(Unsupported, match=r"with what QEMU needs 1536 MiB; this user may lock 8 MiB"):
        vfio.lock_words(spec)
    monkeypatch.setattr(resource, "getrlimit", lambda which: (8 << 20, resource.RLIM_INFINITY))
    assert vfio.lock_words(spec)


def test_usb_devices(tree: MadeTree) -> None:
    tree.add_usb("usb1", 1, 1, "1d6b:0002", "xHCI Host Controller", hub=True)
    tree.add_usb("1-2", 1, 12, "046d:c077", "USB Optical Mouse")
    stick = tree.add_usb("1-10", 1, 3, "0951:1666", "DataTraveler")
    (tree.sys / "bus/usb/devices/1-2:1.0").symlink_to(stick)
    assert [each.shown for each in usb.devices(tree)] == [
        "1.3 (0951:1666 DataTraveler)",
        "1.12 (046d:c077 USB Optical Mouse)",
    ]
    mouse = UsbDevice(type=UsbType.HOST, vendor="046d", product="c077", devid=4)
    (settled,) = usb.settle(tree, "web", [mouse], [])
    assert settled == UsbDevice(type=UsbType.HOST, hostbus=1, hostaddr=12, devid=4)
    os.close(usb.open_device(tree, settled))
    with pytest.raises(Conflict, match=r"USB device 1\.12 .* is in use by domain 'other'"):
        usb.settle(tree, "web", [mouse], [running("other", usbdev=(settled,))])
    with pytest.raises(Conflict, match=r"is in use by domain 'web'"):
        usb.settle(tree, "web", [mouse, mouse], [])
    with pytest.raises(NotFound, match=r"no USB device 1\.9"):
        usb.settle(tree, "web", [UsbDevice(type=UsbType.HOST, hostbus=1, hostaddr=9)], [])
    tree.add_below("block", "sdc", stick, dev="8:1\n")
    with pytest.raises(Conflict, match="is in use by the host: disk sdc is mounted on /"):
        usb.settle(tree, "web", [UsbDevice(type=UsbType.HOST, hostbus=1, hostaddr=3)], [])
    (tree.dev / "bus/usb/001/012").unlink()
    with pytest.raises(EngineError, match=r"cannot open .*/001/012: No such file"):
        usb.open_device(tree, settled)


def test_two_of_a_kind_go_to_two_domains(tree: MadeTree) -> None:
    for address in (3, 4):
        tree.add_usb(f"1-{address}", 1, address, "046d:c077")
    mouse = UsbDevice(type=UsbType.HOST, vendor="046d", product="c077")
    assert [each.hostaddr for each in usb.settle(tree, "web", [mouse, mouse], [])] == [3, 4]


def test_reaching_a_peer(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        os.close(redir.connect(f"127.0.0.1:{port}"))
    with pytest.raises(Unavailable, match=f"nobody speaks usbredir at 127.0.0.1:{port}: Connection refused"):
        redir.connect(f"127.0.0.1:{port}")
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        os.close(redir.connect(f"unix:{path}"))
    with pytest.raises(Unavailable, match="No such file"):
        redir.connect(f"unix:{tmp_path}/none")
    with pytest.raises(Unavailable, match="usbredir at a:99999"):
        redir.connect("a:99999")

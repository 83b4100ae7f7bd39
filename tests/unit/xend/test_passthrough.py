"""Devices of the host for domains, with a made sysfs and the stand-in for guests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pyxen import api, snapshot_api
from pyxen.api import CreateRequest
from pyxen.config.model import DomainConfig, DomainType, PciDevice, UsbDevice, UsbType
from pyxen.errors import ConfigError, Conflict, EngineError, NotFound, PyxenError, ResourceExhausted, Unsupported
from pyxen.xend.ballooning import Ballooning
from pyxen.xend.host_pci import HostPci
from pyxen.xend.store import Store
from tests.unit.engine.host_tree import DISK, NIC, SOUND, MadeTree, make_tree
from tests.unit.xend.conftest import Xend, describe
from tests.unit.xend.test_ballooning import HIGH, LOW
from tests.unit.xend.test_ballooning import host as host_with
from tests.unit.xend.test_devices import config, written
from tests.unit.xend.test_life import Boot, create, running_as, until

pytestmark = pytest.mark.anyio


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MadeTree:
    """The host of every xend in the test."""
    made, usual = make_tree(tmp_path / "host"), HostPci.__init__

    def begin(self: HostPci, store: Store) -> None:
        usual(self, store, made)

    monkeypatch.setattr(HostPci, "__init__", begin)
    return made


def disk(path: Path, **more: object) -> UsbDevice:
    path.write_bytes(bytes(4096))
    return UsbDevice(type=UsbType.DISK, target=str(path), **more)  # type: ignore[arg-type]


def usb(xend: Xend, name: str = "web") -> dict[int, str]:
    return {each.number: each.state for each in xend.domains.devices.list(name).usb}


def pci(xend: Xend, name: str = "web") -> dict[str, str]:
    return {each.device.address: each.state for each in xend.domains.devices.list(name).pci}


async def refused(step: Callable[[], object]) -> str:
    try:
        await step()  # type: ignore[misc]
    except PyxenError as error:
        return f"{type(error).__name__}: {error.message}"
    return ""


async def test_a_device_is_assignable_until_it_is_given_back(boot: Boot, tree: MadeTree) -> None:
    xend = await boot()
    host = xend.domains.passthrough
    await host.make_assignable("3:0.0")
    assert tree.driver(NIC) == "vfio-pci"
    listed = {each.address: each for each in (await host.host_pci()).devices}
    assert (listed[NIC].assignable, listed[NIC].driver, listed[NIC].problem) == (True, "vfio-pci", "")
    assert "disk sda1 is mounted on /" in listed[DISK].problem
    # The host is restarted: its own driver has it; a later xend takes it again, and knows whose it was.
    await xend.die()
    (tree.sys / "bus/pci/devices" / NIC / "driver").unlink()
    tree.bind(NIC, "e1000e")
    xend = await boot()
    assert tree.driver(NIC) == "vfio-pci"
    await xend.domains.passthrough.give_back(NIC)
    assert tree.driver(NIC) == "e1000e"
    await xend.die()
    xend = await boot()
    assert tree.driver(NIC) == "e1000e"
    with pytest.raises(Conflict, match="is the host's: its driver is e1000e"):
        await xend.domains.passthrough.give_back(NIC)
    with pytest.raises(ConfigError, match="no PCI device's address"):
        await xend.domains.passthrough.give_back("x")


async def test_what_the_host_has_come_to_need_stays_with_it(boot: Boot, tree: MadeTree) -> None:
    xend = await boot()
    await xend.domains.passthrough.make_assignable(NIC)
    await xend.die()
    (tree.sys / "bus/pci/devices" / NIC / "driver").unlink()
    tree.bind(NIC, "e1000e")
    tree.add_below("net", "eth0", tree.sys / "bus/pci/devices" / NIC, flags="0x1003\n")
    xend = await boot()
    assert tree.driver(NIC) == "e1000e"
    assert "eth0 is up" in xend.domains.dmesg()


async def test_a_device_that_was_taken_out_of_the_host_can_be_forgotten(boot: Boot, tree: MadeTree) -> None:
    xend = await boot()
    await xend.domains.passthrough.make_assignable(NIC)
    await xend.die()
    (tree.sys / "bus/pci/devices" / NIC).unlink()
    xend = await boot()
    assert f"no PCI device {NIC}" in xend.domains.dmesg()
    await xend.domains.passthrough.give_back(NIC)
    with pytest.raises(NotFound, match=f"this host has no PCI device {NIC}"):
        await xend.domains.passthrough.give_back(NIC)


async def test_what_can_not_be_taken_leaves_nothing_to_remember(boot: Boot, tree: MadeTree) -> None:
    xend = await boot()
    tree.broken.add("vfio-pci")
    with pytest.raises(EngineError, match="the kernel did not bind it"):
        await xend.domains.passthrough.make_assignable(NIC)
    with pytest.raises(Conflict, match="mounted on /"):
        await xend.domains.passthrough.make_assignable(DISK)
    tree.broken.clear()
    await xend.die()
    await boot()
    assert tree.driver(NIC) == "e1000e"


async def test_a_pci_device_comes_and_goes(boot: Boot, tree: MadeTree) -> None:
    xend = await boot()
    await create(xend)
    attach = xend.domains.passthrough.attach_pci
    with pytest.raises(Conflict, match="is not assignable: it has the driver e1000e"):
        await attach("web", PciDevice(NIC))
    with pytest.raises(Conflict, match="shares IOMMU group 12"):
        await attach("web", PciDevice(NIC, seize=True))
    assert (tree.driver(NIC), pci(xend)) == ("vfio-pci", {})
    await attach("web", PciDevice(SOUND, vslot=9, seize=True))
    await attach("web", PciDevice(NIC))
    assert pci(xend) == {SOUND: "attached", NIC: "attached"}
    assert written(xend).slots["pci-0000-03-00.1"] == 9
    with pytest.raises(ConfigError, match="is already given"):
        await attach("web", PciDevice(NIC))
    with pytest.raises(Conflict, match="is in use by domain 'web'"):
        await xend.domains.passthrough.give_back(NIC)
    with pytest.raises(Conflict, match="is in use by domain 'web'"):
        await create(xend, "other", pci=(PciDevice(NIC),))
    # Nor can its state be kept.
    for step in (
        lambda: xend.domains.save("web", api.SaveRequest(path="/tmp/none")),
        lambda: xend.domains.snapshots.create("web", snapshot_api.SnapshotRequest(name="now")),
        lambda: xend.domains.clone("web", snapshot_api.CloneRequest(name="two")),
    ):
        assert f"'web' has the host's PCI device {SOUND}" in await refused(step)
    # It is there after a restart, in a later xend too.
    await xend.die()
    xend = await boot()
    xend.process("web").control("reboot")
    await until(lambda: running_as(xend, "web", 3))
    assert (pci(xend), written(xend).slots["pci-0000-03-00.1"]) == ({SOUND: "attached", NIC: "attached"}, 9)
    await xend.domains.passthrough.detach_pci("web", "3:0.1")
    assert (pci(xend), [each.address for each in config(xend).pci]) == ({NIC: "attached"}, [NIC])
    with pytest.raises(NotFound, match=f"Cannot find device '{SOUND}' in domain 'web'"):
        await xend.domains.passthrough.detach_pci("web", SOUND)


async def test_a_slot_that_is_taken(boot: Boot, tree: MadeTree) -> None:
    xend = await boot()
    await create(xend)
    for address in (NIC, SOUND):
        await xend.domains.passthrough.make_assignable(address)
    with pytest.raises(Conflict, match=rf"{NIC} can't be in slot 2 of 'web': balloon is there"):
        await xend.domains.passthrough.attach_pci("web", PciDevice(NIC, vslot=2))
    assert (pci(xend), config(xend).pci) == ({}, ())
    with pytest.raises(Conflict, match=r"can't be in slot 1 of 'two': the machine itself is there"):
        await create(xend, "two", pci=(PciDevice(NIC, vslot=1),))


async def test_a_usb_disk_comes_and_goes(boot: Boot, tree: MadeTree, tmp_path: Path) -> None:
    xend = await boot()
    await create(xend)
    attach, detach = xend.domains.passthrough.attach_usb, xend.domains.passthrough.detach_usb
    await attach("web", disk(tmp_path / "a.img"))
    await attach("web", disk(tmp_path / "b.img", readonly=True))
    assert usb(xend) == {0: "attached", 1: "attached"}
    assert (config(xend).usb, "usb" in written(xend).slots) == (True, True)
    with pytest.raises(ConfigError, match="is already used"):
        await attach("web", disk(tmp_path / "a.img"))
    with pytest.raises(Conflict, match=r"disk usb0 of 'two': .*a\.img is in use by domain 'web' \(usb0, w\)"):
        await create(xend, "two", usbdev=(disk(tmp_path / "a.img"),))
    await detach("web", "0")
    assert (usb(xend), [each.devid for each in config(xend).usbdev]) == ({1: "attached"}, [1])
    await attach("web", disk(tmp_path / "c.img"))
    assert usb(xend) == {1: "attached", 0: "attached"}
    await detach("web", "1")
    await detach("web", "0")
    assert (usb(xend), config(xend).usbdev) == ({}, ())
    assert "usb" in written(xend).slots, "the controller stays"
    with pytest.raises(NotFound, match="Cannot find device '0' in domain 'web'"):
        await detach("web", "0")


async def test_what_the_monitor_refuses_leaves_no_usb_device(boot: Boot, tree: MadeTree, tmp_path: Path) -> None:
    xend = await boot()
    await create(xend, extra="fake.full")
    with pytest.raises(EngineError, match="takes no device"):
        await xend.domains.passthrough.attach_usb("web", disk(tmp_path / "a.img"))
    assert (usb(xend), config(xend).usb, "usb" in written(xend).slots) == ({}, False, False)


async def test_usb_devices_of_the_host(boot: Boot, tree: MadeTree) -> None:
    tree.add_usb("1-2", 1, 3, "046d:c077", "Mouse")
    xend = await boot()
    await create(xend)
    await create(xend, "other")
    mouse = UsbDevice(type=UsbType.HOST, vendor="046d", product="c077")
    await xend.domains.passthrough.attach_usb("web", mouse)
    assert [(each.vendor, each.hostaddr) for each in config(xend).usbdev] == [("046d", None)]
    assert [(each.vendor, each.hostaddr) for each in written(xend).config.usbdev] == [(None, 3)]
    (listed,) = (await xend.domains.passthrough.host_usb()).devices
    assert (listed.domain, listed.name, listed.port) == ("web", "Mouse", "1-2")
    with pytest.raises(Conflict, match=r"USB device 1\.3 \(046d:c077 Mouse\) is in use by domain 'web'"):
        await xend.domains.passthrough.attach_usb("other", UsbDevice(type=UsbType.HOST, hostbus=1, hostaddr=3))
    with pytest.raises(NotFound, match="this host has no USB device 1234:5678"):
        await xend.domains.passthrough.attach_usb("other", UsbDevice(type=UsbType.HOST, vendor="1234", product="5678"))
    with pytest.raises(Unsupported, match="'web' has a USB device of the host, which would be in another state"):
        await xend.domains.save("web", api.SaveRequest(path="/tmp/none"))
    await xend.domains.passthrough.detach_usb("web", "host:046D:C077")
    await xend.domains.passthrough.attach_usb("other", UsbDevice(type=UsbType.HOST, hostbus=1, hostaddr=3))
    await xend.domains.passthrough.detach_usb("other", "1.3")
    assert (usb(xend), usb(xend, "other")) == ({}, {})


async def test_a_usb_disk_is_in_no_copy(boot: Boot, tree: MadeTree, tmp_path: Path) -> None:
    xend = await boot()
    await create(xend, usbdev=(disk(tmp_path / "a.img"),))
    with pytest.raises(Unsupported, match=r"'web' has .*a\.img as a USB disk, which no copy is made of"):
        await xend.domains.snapshots.create("web", snapshot_api.SnapshotRequest(name="now"))
    await xend.domains.save("web", api.SaveRequest(path=str(tmp_path / "saved")))
    await xend.domains.restore(api.RestoreRequest(path=str(tmp_path / "saved")))
    assert usb(xend) == {0: "attached"}


async def test_a_domain_that_does_not_run_is_described(boot: Boot, tree: MadeTree, tmp_path: Path) -> None:
    xend = await boot()
    await xend.domains.create(CreateRequest(config=describe("web"), managed=True))
    await xend.domains.passthrough.attach_usb("web", disk(tmp_path / "a.img"))
    await xend.domains.passthrough.attach_pci("web", PciDevice(NIC, seize=True))
    assert (usb(xend), pci(xend)) == ({0: ""}, {NIC: ""})
    assert "shares IOMMU group" in await refused(lambda: xend.domains.start("web", paused=False))
    await xend.domains.passthrough.make_assignable(SOUND)
    await xend.domains.start("web", paused=False)
    assert (usb(xend), pci(xend)) == ({0: "attached"}, {NIC: "attached"})
    await xend.domains.destroy("web")
    await xend.domains.passthrough.detach_usb("web", "0")
    await xend.domains.passthrough.detach_pci("web", NIC)
    assert (usb(xend), pci(xend), config(xend).pci) == ({}, {}, ())


async def test_who_can_have_none(boot: Boot, tree: MadeTree, tmp_path: Path) -> None:
    xend = await boot()
    pvh = DomainConfig(name="pvh", type=DomainType.PVH, kernel="/nowhere")
    await xend.domains.create(CreateRequest(config=pvh, managed=True))
    with pytest.raises(Unsupported, match="'pvh' is a pvh domain, and these have no USB"):
        await xend.domains.passthrough.attach_usb("pvh", disk(tmp_path / "a.img"))
    with pytest.raises(Unsupported, match="'pvh' is a pvh domain, and these have no PCI devices of the host"):
        await xend.domains.passthrough.attach_pci("pvh", PciDevice(NIC))
    await create(xend, "full", usbdev=tuple(disk(tmp_path / f"{n}.img") for n in range(15)))
    with pytest.raises(ResourceExhausted, match="all 15 ports of the USB controller of 'full' are taken"):
        await xend.domains.passthrough.attach_usb("full", disk(tmp_path / "a.img"))


async def test_without_an_iommu(boot: Boot, tree: MadeTree, tmp_path: Path) -> None:
    bare = make_tree(tmp_path / "bare", iommu=False)
    xend = await boot()
    xend.life.pci.tree = bare
    found = await xend.domains.passthrough.host_pci()
    assert "this host has no IOMMU" in found.problem and "firmware's set-up" in found.hint
    await create(xend)
    for device in (PciDevice(NIC), PciDevice(NIC, seize=True)):
        with pytest.raises(Unsupported, match="this host has no IOMMU"):
            await xend.domains.passthrough.attach_pci("web", device)
    with pytest.raises(Unsupported, match="this host has no IOMMU"):
        await create(xend, "two", pci=(PciDevice(NIC),))
    assert bare.driver(NIC) == "e1000e"


async def test_who_has_a_pci_device_is_asked_for_no_memory(boot: Boot, tree: MadeTree, tmp_path: Path) -> None:
    xend = await boot(balloon_low_mib=LOW, balloon_high_mib=HIGH)
    for address in (NIC, SOUND):
        await xend.domains.passthrough.make_assignable(address)
    await create(xend, memory=256, min_memory=128, pci=(PciDevice(NIC),))
    await create(xend, "other", memory=256, min_memory=128)
    await Ballooning(xend.life, host_with(tmp_path, 100)).look()
    await until(lambda: xend.domains.get("other").memory_mib == 128)
    assert xend.domains.get("web").memory_mib == 256

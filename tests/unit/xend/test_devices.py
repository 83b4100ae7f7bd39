"""Disks and interfaces that come and go, with the stand-in for guests."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from pyxen.api import CreateRequest
from pyxen.config.model import (
    Disk,
    DiskAccess,
    DiskFormat,
    DiskType,
    DomainConfig,
    DomainType,
    Vif,
    vif_numbers,
)
from pyxen.engine.contract import DomainSpec
from pyxen.engine.fake import FakeDomain
from pyxen.errors import ConfigError, Conflict, EngineError, NotFound, Unsupported
from pyxen.xend.devices import device_number
from tests.unit.xend.conftest import Xend, describe
from tests.unit.xend.test_life import Boot, create, gone, running_as, until

pytestmark = pytest.mark.anyio
MACS = ("00:16:3e:00:00:01", "00:16:3e:00:00:02", "00:16:3e:00:00:03")


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = tmp_path / "a.img"
    path.write_bytes(bytes(4096))
    return str(path)


def config(xend: Xend) -> DomainConfig:
    found = xend.domains.get("web").config
    assert found is not None
    return found


def written(xend: Xend) -> DomainSpec:
    """What a later xend would read."""
    domid = xend.domains.get("web").domid
    assert domid is not None
    return msgspec.json.decode((xend.life.directory(domid) / "domain.json").read_bytes(), type=DomainSpec)


def states(xend: Xend) -> dict[str, str]:
    return {each.disk.vdev: each.state for each in xend.domains.devices.list("web").disks}


async def test_a_disk_comes_and_goes(boot: Boot, image: str) -> None:
    xend = await boot()
    await create(xend)
    await xend.domains.devices.attach_disk("web", Disk(vdev="xvdb", target=image))
    assert states(xend) == {"xvdb": "attached"}
    assert [disk.format for disk in config(xend).disk] == [DiskFormat.AUTO]
    spec = written(xend)
    assert ([disk.format for disk in spec.config.disk], "xvdb" in spec.slots) == ([DiskFormat.RAW], True)
    await xend.domains.devices.detach_disk("web", "51728")
    assert (states(xend), config(xend).disk) == ({}, ())
    assert (written(xend).config.disk, "xvdb" in written(xend).slots) == ((), False)
    assert xend.kinds()[-2:] == ["domain-device-attached", "domain-device-detached"]


async def test_it_is_there_after_a_restart_and_in_a_later_xend(boot: Boot, image: str) -> None:
    xend = await boot()
    await create(xend)
    await xend.domains.devices.attach_disk("web", Disk(vdev="xvdb", target=image))
    slots = written(xend).slots
    await xend.die()
    xend = await boot()
    assert (states(xend), written(xend).slots) == ({"xvdb": "attached"}, slots)
    xend.process("web").control("reboot")
    await until(lambda: running_as(xend, "web", 2))
    assert states(xend) == {"xvdb": "attached"}


async def test_what_can_not_be_attached(boot: Boot, image: str, tmp_path: Path) -> None:
    xend = await boot()
    await create(xend, "other", disk=(Disk(vdev="xvda", target=image),))
    await create(xend)
    attach = xend.domains.devices.attach_disk
    with pytest.raises(Conflict, match=r"is in use by domain 'other' \(xvda, w\)"):
        await attach("web", Disk(vdev="xvdb", target=image, access=DiskAccess.READ))
    with pytest.raises(NotFound, match="disk xvdb: /nowhere does not exist"):
        await attach("web", Disk(vdev="xvdb", target="/nowhere"))
    own = tmp_path / "own.img"
    own.write_bytes(bytes(512))
    await attach("web", Disk(vdev="xvdb", target=str(own)))
    with pytest.raises(ConfigError, match='"xvdb" is already defined'):
        await attach("web", Disk(vdev="xvdb", target=image))
    with pytest.raises(ConfigError, match="is already used"):
        await attach("web", Disk(vdev="xvdc", target=str(own)))
    with pytest.raises(Conflict, match="an empty drive can't be attached to 'web' while it runs"):
        await attach("web", Disk(vdev="xvdc", devtype=DiskType.CDROM, access=DiskAccess.READ))
    with pytest.raises(Conflict, match="Domain-0"):
        await attach("0", Disk(vdev="xvdc", target=image))
    assert states(xend) == {"xvdb": "attached"}


async def test_what_the_monitor_refuses_leaves_nothing(boot: Boot, image: str) -> None:
    xend = await boot()
    await create(xend, extra="fake.full")
    before = written(xend)
    with pytest.raises(EngineError, match="takes no device"):
        await xend.domains.devices.attach_disk("web", Disk(vdev="xvdb", target=image))
    assert (config(xend).disk, written(xend), states(xend)) == ((), before, {})


async def test_a_guest_that_does_not_let_go(boot: Boot, image: str) -> None:
    xend = await boot(detach_timeout=0.05)
    await create(xend, extra="fake.clinging", disk=(Disk(vdev="xvda", target=image),))
    with pytest.raises(EngineError, match=r"'web' has not let go of disk xvda within 0.05 s"):
        await xend.domains.devices.detach_disk("web", "xvda")
    assert (states(xend), len(config(xend).disk)) == ({"xvda": "detaching"}, 1)
    # It does so later, when nobody waits any more.
    events = xend.process("web").directory / "events"
    with events.open("ab") as file:
        file.write(b'{"event":"DEVICE_DELETED","data":{"device":"xvda"}}\n')
    await until(lambda: states(xend) == {})
    assert config(xend).disk == ()


async def test_what_a_guest_clings_to_can_be_taken_away(boot: Boot, image: str) -> None:
    xend = await boot()
    await create(xend, extra="fake.clinging", disk=(Disk(vdev="xvda", target=image),), vif=(Vif(mac=MACS[0]),))
    await xend.domains.devices.detach_disk("web", "xvda", force=True)
    await xend.domains.devices.detach_vif("web", "0", force=True)
    assert (config(xend).disk, config(xend).vif, written(xend).config.vif) == ((), (), ())


async def test_a_domain_that_ends_meanwhile(boot: Boot, image: str) -> None:
    xend = await boot()
    await create(xend, extra="fake.clinging", disk=(Disk(vdev="xvda", target=image),), on_poweroff="destroy")
    uuid = xend.domains.get("web").uuid
    live = xend.life.registry.live[uuid]

    async def end() -> None:
        await until(lambda: live.leaving)
        await xend.domains.destroy("web")

    xend.life.spawn(end())
    with pytest.raises(Conflict, match="stopped before it had let go of disk xvda"):
        await xend.domains.devices.detach_disk("web", "xvda")
    await until(lambda: gone(xend, "web"))


async def test_interfaces_keep_their_numbers(boot: Boot) -> None:
    xend = await boot()
    await create(xend, vif=(Vif(mac=MACS[0]), Vif(mac=MACS[1])))
    await xend.domains.devices.detach_vif("web", "0")
    assert [(each.number, each.vif.mac) for each in xend.domains.devices.list("web").vifs] == [(1, MACS[1])]
    await xend.domains.devices.attach_vif("web", Vif())
    assert vif_numbers(config(xend).vif) == [1, 0]
    assert vif_numbers(written(xend).config.vif) == [1, 0]
    made = config(xend).vif[1].mac
    assert made is not None
    assert written(xend).config.vif[1].mac == made
    with pytest.raises(ConfigError, match="is already defined"):
        await xend.domains.devices.attach_vif("web", Vif(mac=MACS[1]))
    await xend.domains.devices.detach_vif("web", made.upper())
    await xend.domains.devices.detach_vif("web", "1")
    assert config(xend).vif == ()
    with pytest.raises(NotFound, match="Cannot find device '1' in domain 'web'"):
        await xend.domains.devices.detach_vif("web", "1")


async def test_a_managed_domain_that_does_not_run_has_it_at_its_next_start(boot: Boot, image: str) -> None:
    xend = await boot()
    await xend.domains.create(CreateRequest(config=describe(), managed=True))
    devices = xend.domains.devices
    await devices.attach_disk("web", Disk(vdev="xvdb", target=image))
    await devices.attach_vif("web", Vif(mac=MACS[0]))
    assert states(xend) == {"xvdb": ""}
    await xend.domains.start("web", paused=False)
    assert states(xend) == {"xvdb": "attached"}
    await xend.domains.destroy("web")
    await devices.detach_disk("web", "xvdb")
    await devices.detach_vif("web", "0")
    assert (config(xend).disk, config(xend).vif) == ((), ())
    await xend.domains.delete("web")


async def test_discs(boot: Boot, image: str) -> None:
    xend = await boot()
    drive = Disk(vdev="hdc", devtype=DiskType.CDROM, access=DiskAccess.READ)
    await create(xend, disk=(drive, Disk(vdev="hda", target=image)))
    devices = xend.domains.devices
    with pytest.raises(Conflict, match="hda of 'web' is a disk, not a CD-ROM drive"):
        await devices.change_disc("web", "hda", image)
    disc = image[:-5] + "cd.iso"
    Path(disc).write_bytes(bytes(2048))
    await devices.change_disc("web", "hdc", disc)
    assert (config(xend).disk[0].target, written(xend).config.disk[0].target) == (disc, disc)
    with pytest.raises(NotFound, match="does not exist"):
        await devices.change_disc("web", "hdc", "/nowhere.iso")
    await devices.change_disc("web", "hdc", "")
    assert (config(xend).disk[0].target, written(xend).config.disk[0].target) == ("", "")
    with pytest.raises(Conflict, match="is read-only"):
        await devices.resize_disk("web", "hdc", 4096)
    await devices.resize_disk("web", "hda", 8192)
    assert xend.kinds()[-1] == "domain-disk-resized"


async def test_rates(boot: Boot, image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    xend = await boot()
    await create(xend, disk=(Disk(vdev="xvda", target=image),), vif=(Vif(), Vif()))
    devices, told = xend.domains.devices, list[Disk | Vif]()
    limit = FakeDomain.limit

    async def limited(self: FakeDomain, device: Disk | Vif, spec: DomainSpec) -> None:
        told.append(device)
        await limit(self, device, spec)

    monkeypatch.setattr(FakeDomain, "limit", limited)
    await devices.limit_disk("web", "xvda", 10**6, None)
    await devices.limit_disk("web", "51712", None, 50)
    for disk in (told[-1], config(xend).disk[0], written(xend).config.disk[0]):
        assert isinstance(disk, Disk)
        assert (disk.rate, disk.iops) == (10**6, 50)
    await devices.limit_disk("web", "xvda", 0, None)
    assert (config(xend).disk[0].rate, config(xend).disk[0].iops) == (None, 50)
    await devices.limit_vif("web", "1", 1000)
    assert [vif.rate for vif in config(xend).vif] == [None, 1000]
    with pytest.raises(NotFound, match="Cannot find device '2'"):
        await devices.limit_vif("web", "2", 1000)

    async def refuse(self: FakeDomain, device: Disk | Vif, spec: DomainSpec) -> None:
        raise Unsupported("no rate is kept")

    monkeypatch.setattr(FakeDomain, "limit", refuse)
    with pytest.raises(Unsupported, match="no rate is kept"):
        await devices.limit_vif("web", "1", 0)
    assert [vif.rate for vif in config(xend).vif] == [None, 1000]
    assert xend.kinds()[-1] == "domain-device-limited"


@pytest.mark.parametrize(
    ("kind", "vdev", "number"),
    [
        (DomainType.HVM, "hda", 768),
        (DomainType.HVM, "hdd", 5696),
        (DomainType.HVM, "sdb", 2064),
        (DomainType.HVM, "xvdb", 51728),
        (DomainType.PVH, "hdb", 51728),
    ],
)
def test_numbers_are_xens(kind: DomainType, vdev: str, number: int) -> None:
    assert device_number(kind, vdev) == number

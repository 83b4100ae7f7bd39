"""Devices that come to, and are taken from, a real hypervisor process in its jail; its guest does nothing with them."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pyxen.config.model import Disk, DiskFormat, DiskType, Forward, Vif
from pyxen.engine import plugs, storage, usernet
from pyxen.engine.contract import DomainSpec
from pyxen.engine.inotify import Inotify
from pyxen.engine.process import find
from pyxen.engine.xen import XenDomain, XenEngine
from pyxen.errors import Conflict, EngineError, InvalidRequest, Unsupported
from tests.guest.host import free_port
from tests.unit.engine.test_xen import ask, start
from tests.unit.hypervisor.jail.cell import IS_ROOT, PRISONER, folder
from tests.unit.hypervisor.kvm.micro import needs_kvm

pytestmark = [pytest.mark.anyio, needs_kvm]
_SOON_S = 30
_MIB = 1 << 20
needs_images = pytest.mark.skipif(
    shutil.which("qemu-img") is None, reason="qemu-img is not installed (apt-get install qemu-utils)"
)


@pytest.fixture
def place() -> Iterator[Path]:
    with folder(ordinary=False) as path:
        yield path


class Lab:
    """A running domain, and what it is said to have."""

    def __init__(self, engine: XenEngine, domain: XenDomain, directory: Path) -> None:
        self.engine, self.domain, self.directory = engine, domain, directory
        self.gone: list[str] = []
        domain.on_unplugged(self.gone.append)

    def with_device(self, device: Disk | Vif) -> DomainSpec:
        spec, config = self.domain.spec, self.domain.spec.config
        if isinstance(device, Disk):
            config = msgspec.structs.replace(config, disk=(*config.disk, device))
        else:
            config = msgspec.structs.replace(config, vif=(*config.vif, device))
        return msgspec.structs.replace(spec, config=config)

    async def plug(self, device: Disk | Vif) -> None:
        await self.domain.plug(device, self.with_device(device))

    async def take(self, device: str) -> None:
        self.gone.clear()
        await self.domain.unplug(device, force=True)
        await self.until(lambda: device in self.gone)

    async def until(self, condition: Any) -> None:
        end = asyncio.get_running_loop().time() + _SOON_S
        while not condition():
            assert asyncio.get_running_loop().time() < end, "nothing happens"
            await asyncio.sleep(0.01)

    async def adopted(self) -> XenDomain:
        """The domain as a later xend has it."""
        self.domain.close()
        found = await self.engine.adopt(self.domain.spec, self.directory)
        assert isinstance(found, XenDomain)
        self.domain, self.gone = found, []
        found.on_unplugged(self.gone.append)
        return found


@pytest.fixture
async def lab(place: Path) -> AsyncIterator[Lab]:
    engine = XenEngine(place, Inotify())
    domain, directory = await start(engine, place)
    assert isinstance(domain, XenDomain)
    yield (found := Lab(engine, domain, directory))
    await found.domain.destroy()
    assert find(directory) == []
    assert (directory / "stderr").read_text() == ""


def raw(place: Path, vdev: str = "xvdb") -> Disk:
    (place / vdev).write_bytes(bytes(_MIB))
    return Disk(vdev=vdev, target=str(place / vdev), format=DiskFormat.RAW)


def qcow2(place: Path, vdev: str = "xvdc") -> Disk:
    path = place / f"{vdev}.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "1M"], check=True)
    return Disk(vdev=vdev, target=str(path), format=DiskFormat.QCOW2)


def image_size(path: Path) -> int:
    """Fails while somebody has the image open."""
    done = subprocess.run(["qemu-img", "info", "--output=json", path], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(msgspec.json.decode(done.stdout)["virtual-size"])


async def attached(lab: Lab) -> list[str]:
    found: list[str] = (await ask(lab.directory, "devices"))["attached"]
    return found


async def test_a_raw_disk_comes_grows_and_is_taken_away(lab: Lab, place: Path) -> None:
    disk = raw(place)
    await lab.plug(disk)
    assert await attached(lab) == ["xvda", "xvdb"]
    with pytest.raises(Conflict, match="there is a device xvdb already"):
        await lab.domain._execute("attach-disk", {"disk": msgspec.to_builtins(disk)}, [1])
    await lab.domain.resize_disk("xvdb", 3 * _MIB)
    assert (place / "xvdb").stat().st_size == 3 * _MIB
    for size, why in ((2 * _MIB, "can't be made smaller"), (3 * _MIB + 1, "whole sectors")):
        with pytest.raises(InvalidRequest, match=why):
            await lab.domain.resize_disk("xvdb", size)
    await lab.domain.unplug("xvdb")
    assert await attached(lab) == ["xvda", "xvdb"], "a guest without a driver lets go of nothing"
    await lab.take("xvdb")
    assert await attached(lab) == ["xvda"]
    with pytest.raises(EngineError, match="there is no device xvdb"):
        await lab.domain.unplug("xvdb")
    if IS_ROOT:
        assert str(place / "xvdb") not in map(os.readlink, Path(f"/proc/{lab.domain.pid}/fd").iterdir())


@needs_images
async def test_served_disks_come_grow_and_are_taken_away(lab: Lab, place: Path) -> None:
    disk = qcow2(place)
    await lab.plug(disk)
    await lab.domain.resize_disk("xvdc", 2 * _MIB)
    with pytest.raises(InvalidRequest, match="can't be made smaller"):
        await lab.domain.resize_disk("xvdc", _MIB)
    assert await ask(lab.directory, "devices") == {"attached": ["xvda", "xvdc"], "held": []}
    await lab.plug(qcow2(place, "xvdd"))
    assert len(find(lab.directory)) == 2, "one server for all"
    await lab.take("xvdc")
    await lab.plug(disk)
    await lab.take("xvdd")
    await lab.take("xvdc")
    assert image_size(Path(disk.target)) == 2 * _MIB


@needs_images
@pytest.mark.parametrize("exported", [True, False])
async def test_a_xend_that_died_while_a_disk_grew(lab: Lab, place: Path, exported: bool) -> None:
    await lab.plug(qcow2(place))
    await ask(lab.directory, "hold-disk", device="xvdc")
    assert (await ask(lab.directory, "devices"))["held"] == ["xvdc"]
    if not exported:
        async with storage._session(lab.directory) as server:
            await storage._unexport(server, "xvdc")
    await lab.adopted()
    assert await ask(lab.directory, "devices") == {"attached": ["xvda", "xvdc"], "held": []}


async def test_a_later_xend_finds_what_has_gone(lab: Lab, place: Path) -> None:
    await lab.plug(raw(place))
    lab.domain.close()
    await ask(lab.directory, "detach", device="xvdb", force=True)
    await lab.adopted()
    await lab.until(lambda: lab.gone == ["xvdb"])


async def test_an_interface_comes_and_goes_with_its_forwards(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usernet, "_has_route", lambda: False)
    port = free_port()
    vif = Vif(mac="00:16:3e:00:00:01", forward=(Forward(host=port, guest=22),))

    def open_port() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    for _ in range(2):
        await lab.plug(vif)
        assert await attached(lab) == ["xvda", "nic0"]
        assert open_port() and lab.domain.info.forwards == [f"tcp 127.0.0.1:{port} -> 22"]
        await lab.take("nic0")
        assert not open_port() and lab.domain.info.forwards == []
        assert len(find(lab.directory)) == 1
        lab.domain.spec = msgspec.structs.replace(
            lab.domain.spec, config=msgspec.structs.replace(lab.domain.spec.config, vif=())
        )


@needs_images
async def test_what_can_not_be_had_leaves_nothing(lab: Lab, place: Path) -> None:
    missing = Disk(vdev="xvdb", target=str(place / "missing"), format=DiskFormat.RAW)
    with pytest.raises(EngineError, match=r"disk xvdb: cannot open .*missing: No such file"):
        await lab.plug(missing)
    broken = place / "broken"
    broken.write_bytes(b"QFI\xfb" + bytes(4096))
    with pytest.raises(EngineError, match="qcow2"):
        await lab.plug(Disk(vdev="xvdb", target=str(broken), format=DiskFormat.QCOW2))
    good = qcow2(place)
    await lab.plug(good)
    with pytest.raises(EngineError, match="qcow2"):
        await lab.plug(Disk(vdev="xvdb", target=str(broken), format=DiskFormat.QCOW2))
    assert await attached(lab) == ["xvda", "xvdc"]
    assert lab.gone == []
    assert [disk.vdev for disk in lab.domain.spec.config.disk] == ["xvda", "xvdc"]


async def test_an_interface_that_is_refused_leaves_nothing(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usernet, "_has_route", lambda: False)
    await lab.plug(Vif(mac="00:16:3e:00:00:01"))
    config = msgspec.structs.replace(lab.domain.spec.config, vif=())
    lab.domain.spec = msgspec.structs.replace(lab.domain.spec, config=config)
    with pytest.raises(Conflict, match="there is a device nic0 already"):
        await lab.plug(Vif(mac="00:16:3e:00:00:02", forward=(Forward(host=free_port(), guest=22),)))
    assert lab.domain.info.forwards == []


async def test_what_is_no_order(lab: Lab, place: Path) -> None:
    execute = lab.domain._execute
    with (place / "xvda").open("wb") as file:
        for command, arguments, fds, why in (
            ("attach-disk", {"disk": {"vdev": "xvdb", "format": "raw"}}, [], "fds"),
            ("attach-disk", {"disk": {"vdev": "!"}}, [file.fileno()], "describes no device"),
            ("attach-disk", {"disk": {"vdev": "xvdb", "format": "raw"}}, [file.fileno()] * 2, "not 2"),
            ("attach-disk", {"disk": {"vdev": "xvdb", "format": "qcow2"}}, [file.fileno()], "not a socket|non-socket"),
            ("attach-vif", {"number": 0, "vif": {"mac": "00:16:3e:00:00:01"}}, [file.fileno()], "no network"),
            ("hold-disk", {"device": "xvda"}, [], "not served"),
            ("resize-disk", {"device": "xvdz", "size": 512}, [], "no disk xvdz"),
        ):
            with pytest.raises((InvalidRequest, EngineError), match=why):
                await execute(command, arguments, fds)
    assert await attached(lab) == ["xvda"]


async def test_no_drive_has_a_disc_to_change(lab: Lab) -> None:
    drive = Disk(vdev="xvdb", devtype=DiskType.CDROM)
    with pytest.raises(Unsupported, match="a pvh domain has none"):
        await lab.domain.change_disc(drive, lab.with_device(drive))


async def test_a_stopped_guest_takes_nothing(lab: Lab, place: Path) -> None:
    await ask(lab.directory, "crash")
    await lab.until(lambda: lab.domain.stopped is not None)
    with pytest.raises(Conflict, match="has stopped"):
        await lab.plug(raw(place))
    with pytest.raises(Conflict, match="has stopped"):
        await plugs.add_disk(lab.domain._execute, raw(place), lab.directory, PRISONER)


async def test_the_agents_socket_takes_callers(lab: Lab) -> None:
    connection = await lab.domain.agent()
    with connection:
        connection.send(b"hello")
        other = await lab.domain.agent()
        other.close()

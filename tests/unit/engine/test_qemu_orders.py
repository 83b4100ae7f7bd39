"""What a QEMU is told for each order, and what is made of what it says: against a monitor that only takes notes."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pyxen.api import Trigger
from pyxen.config.model import DiskFormat, DomainConfig, DomainType, PciDevice, UsbDevice, UsbType
from pyxen.engine.contract import DomainSpec, StartedInfo, UsbController
from pyxen.engine.inotify import Inotify
from pyxen.engine.passthrough import vfio
from pyxen.engine.process import kill_all, marker, spawn
from pyxen.engine.qemu.domain import QemuDomain
from pyxen.engine.qemu.slots import laid_out
from pyxen.errors import EngineError, Unsupported
from tests.unit.engine.host_tree import NIC, make_tree

pytestmark = pytest.mark.anyio


class Monitor:
    """A QMP server that agrees to everything but what ``refusals`` holds."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.orders: list[tuple[str, dict[str, Any]]] = []
        self.answers: dict[str, Any] = {}
        self.refusals: dict[str, str] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        version = {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""}
        self._say(writer, {"QMP": {"version": version, "capabilities": []}})
        while data := await reader.read(65536):  # messages are whole: each waits for its answer
            if not data.strip():  # what a descriptor comes beside
                continue
            message = json.loads(data)
            name = message["execute"]
            if name != "qmp_capabilities":
                self.orders.append((name, message.get("arguments", {})))
            if (words := self.refusals.get(name)) is not None:
                answer: dict[str, Any] = {"error": {"class": "GenericError", "desc": words}}
            else:
                found = self.answers.get(name, {})
                answer = {"return": found() if callable(found) else found}
            self._say(writer, answer | ({"id": message["id"]} if "id" in message else {}))
        writer.close()

    def event(self, name: str, **data: object) -> None:
        with (self.directory / "events").open("a") as file:
            file.write(json.dumps({"event": name, "data": data}) + "\n")

    def _say(self, writer: asyncio.StreamWriter, message: dict[str, Any]) -> None:
        writer.write(json.dumps(message).encode() + b"\n")


class Lab:
    def __init__(self, directory: Path, inotify: Inotify) -> None:
        self.directory = directory
        self.monitor = Monitor(directory)
        self.inotify = inotify
        self.made: list[QemuDomain] = []
        words = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)", marker(directory)]
        self.pid = spawn(words, stderr=directory / "stderr")

    def domain(self, *, accelerator: str = "kvm", cmdline: str = "", **config: Any) -> QemuDomain:
        spec = DomainSpec(domid=1, uuid="u", config=DomainConfig(name="web", **config), cmdline=cmdline)
        domain = QemuDomain(spec, self.directory, self.pid, self.inotify, StartedInfo(accelerator=accelerator))
        self.made.append(domain)
        return domain


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    (tmp_path / "events").write_text('{"event": "RESUME"}\n')
    os.mkfifo(tmp_path / "console.in")
    inotify = Inotify()
    lab = Lab(tmp_path, inotify)
    server = await asyncio.start_unix_server(lab.monitor.serve, tmp_path / "control.sock")
    yield lab
    for domain in lab.made:
        domain.close()
    server.close()
    kill_all(tmp_path)
    inotify.close()


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - a file's watcher has no other sign
            await asyncio.sleep(0.005)


def online(domain: QemuDomain) -> list[int]:
    return [vcpu.number for vcpu in domain.statistics().vcpus if vcpu.online]


def plug(number: int) -> tuple[str, dict[str, Any]]:
    place = {"socket-id": 0, "core-id": number, "thread-id": 0}
    return "device_add", {"driver": "host-x86_64-cpu", "id": f"cpu{number}", **place}


async def test_vcpus_are_plugged_and_count_at_once(lab: Lab) -> None:
    domain = lab.domain(vcpus=1, maxvcpus=4)
    assert online(domain) == [0]
    await domain.set_vcpus(3)
    assert lab.monitor.orders == [plug(1), plug(2)]
    assert online(domain) == [0, 1, 2]
    assert len(domain.statistics().vcpus) == 4


async def test_an_unplugged_vcpu_counts_until_the_guest_lets_it_go(lab: Lab) -> None:
    domain = lab.domain(vcpus=4)
    await domain.set_vcpus(2)
    assert lab.monitor.orders == [("device_del", {"id": "cpu3"}), ("device_del", {"id": "cpu2"})]
    assert online(domain) == [0, 1, 2, 3]
    lab.monitor.event("DEVICE_DELETED", path="/machine/peripheral/cpu3/lapic")
    lab.monitor.event("DEVICE_DELETED", device="cpu3", path="/machine/peripheral/cpu3")
    await until(lambda: online(domain) == [0, 1, 2])


async def test_a_vcpu_that_goes_though_it_is_wanted_again_comes_back(lab: Lab) -> None:
    domain = lab.domain(vcpus=3)
    await domain.set_vcpus(2)
    await domain.set_vcpus(3)
    assert lab.monitor.orders == [("device_del", {"id": "cpu2"})]
    lab.monitor.event("DEVICE_DELETED", device="cpu2", path="/machine/peripheral/cpu2")
    await until(lambda: plug(2) in lab.monitor.orders and 2 in domain.online)


async def test_asking_twice_for_the_same_is_no_error(lab: Lab) -> None:
    domain = lab.domain(vcpus=2)
    lab.monitor.refusals["device_del"] = "Device cpu1 is already in the process of unplug"
    await domain.set_vcpus(1)
    lab.monitor.refusals["device_del"] = "Bus 'x' does not support hotplugging"
    with pytest.raises(EngineError, match="does not support hotplugging"):
        await domain.set_vcpus(1)


async def test_no_device_is_taken_away_by_force(lab: Lab) -> None:
    with pytest.raises(Unsupported, match="against its guest's will"):
        await lab.domain().unplug("xvdb", force=True)
    assert lab.monitor.orders == []


async def test_tcg_never_unplugs(lab: Lab) -> None:
    domain = lab.domain(vcpus=2, maxvcpus=3, accelerator="tcg")
    with pytest.raises(Unsupported, match="without KVM") as caught:
        await domain.set_vcpus(1)
    assert caught.value.hint is not None and "cpu1/online" in caught.value.hint
    assert lab.monitor.orders == []
    await domain.set_vcpus(3)
    assert lab.monitor.orders[0][1]["driver"] == "max-x86_64-cpu"


async def test_an_adopting_xend_asks_which_vcpus_there_are(lab: Lab) -> None:
    lab.monitor.event("DEVICE_DELETED", device="cpu1", path="/machine/peripheral/cpu1")
    domain = lab.domain(vcpus=2, maxvcpus=4)
    lab.monitor.answers["query-hotpluggable-cpus"] = [
        {"props": {"core-id": number}, **({"qom-path": "/x"} if number != 1 else {})} for number in range(4)
    ]
    await domain.learn_vcpus()
    assert online(domain) == [0, 2, 3]
    assert [name for name, _ in lab.monitor.orders] == ["query-hotpluggable-cpus"]


async def test_memory_is_what_the_balloon_says(lab: Lab) -> None:
    domain = lab.domain(memory=256)
    assert domain.statistics().memory_mib is None
    await domain.set_memory(128)
    assert lab.monitor.orders == [("balloon", {"value": 128 << 20})]
    lab.monitor.event("BALLOON_CHANGE", actual=200 << 20)
    await until(lambda: domain.statistics().memory_mib == 200)


@pytest.mark.parametrize(
    ("config", "cmdline", "order", "typed"),
    [
        ({}, "console=ttyS0", ("chardev-send-break", {"id": "console0"}), b"c"),
        ({}, "console=hvc0", None, b"\x0fc"),
        (
            {"type": DomainType.HVM},
            "",
            ("send-key", {"keys": [{"type": "qcode", "data": code} for code in ("alt", "sysrq", "c")]}),
            b"",
        ),
    ],
)
async def test_sysrq_goes_where_the_guest_listens(
    lab: Lab, config: dict[str, Any], cmdline: str, order: tuple[str, Any] | None, typed: bytes
) -> None:
    fifo = os.open(lab.directory / "console.in", os.O_RDWR | os.O_NONBLOCK)
    try:
        await lab.domain(cmdline=cmdline, **config).sysrq("c")
        assert lab.monitor.orders == ([order] if order else [])
        assert (os.read(fifo, 100) if typed else b"") == typed
    finally:
        os.close(fifo)


async def test_triggers(lab: Lab) -> None:
    domain = lab.domain()
    for trigger in (Trigger.NMI, Trigger.RESET, Trigger.POWER):
        await domain.trigger(trigger, None)
    assert [name for name, _ in lab.monitor.orders] == ["inject-nmi", "system_reset", "system_powerdown"]
    for trigger, vcpu, words in [
        (Trigger.NMI, 0, "to all VCPUs"),
        (Trigger.INIT, None, "no INIT"),
        (Trigger.SLEEP, None, "no sleep button"),
        (Trigger.S3RESUME, None, "can't sleep"),
    ]:
        with pytest.raises(Unsupported, match=words):
            await domain.trigger(trigger, vcpu)
    await lab.domain(type=DomainType.HVM).trigger(Trigger.S3RESUME, None)
    assert lab.monitor.orders[-1][0] == "system_wakeup"


async def test_a_core_goes_into_the_descriptor(lab: Lab) -> None:
    domain = lab.domain()
    with (lab.directory / "core").open("wb") as file:
        await domain.dump_core(file.fileno())
    assert lab.monitor.orders == [
        ("getfd", {"fdname": "core"}),
        ("dump-guest-memory", {"paging": False, "protocol": "fd:core"}),
    ]
    with pytest.raises(Unsupported, match="pauses a guest"):
        await domain.dump_core(0, live=True)


def with_devices(domain: QemuDomain, **keys: Any) -> DomainSpec:
    """What the domain is to be."""
    config = msgspec.structs.replace(domain.spec.config, **keys)
    return laid_out(msgspec.structs.replace(domain.spec, config=config))


def orders(lab: Lab, *names: str) -> list[tuple[str, dict[str, Any]]]:
    return [(name, given) for name, given in lab.monitor.orders if name in names]


async def test_usb_devices_are_opened_and_handed_over(lab: Lab, tmp_path: Path) -> None:
    lab.monitor.answers |= {"query-fdsets": [], "query-named-block-nodes": [], "add-fd": {"fdset-id": 4, "fd": 1}}
    domain = lab.domain(type=DomainType.HVM)
    tree = make_tree(tmp_path / "host")
    tree.add_usb("1-2", 1, 3, "046d:c077")
    domain.tree = tree
    await domain.plug(UsbController(), with_devices(domain, usb=True))
    mouse = UsbDevice(type=UsbType.HOST, hostbus=1, hostaddr=3, devid=0)
    await domain.plug(mouse, with_devices(domain, usb=True, usbdev=(mouse,)))
    image = tmp_path / "a.img"
    image.write_bytes(bytes(512))
    stick = UsbDevice(type=UsbType.DISK, target=str(image), format=DiskFormat.RAW, devid=2)
    await domain.plug(stick, with_devices(domain, usb=True, usbdev=(mouse, stick)))
    with socket.create_server(("127.0.0.1", 0)) as server:
        far = UsbDevice(type=UsbType.REDIR, peer=f"127.0.0.1:{server.getsockname()[1]}", devid=3)
        await domain.plug(far, with_devices(domain, usb=True, usbdev=(mouse, stick, far)))
    assert [given for _, given in orders(lab, "device_add")] == [
        {"driver": "qemu-xhci", "id": "usb", "p2": 15, "p3": 15, "bus": "pci.0", "addr": "0x6"},
        {"driver": "usb-host", "id": "usb0", "bus": "usb.0", "port": "1", "hostdevice": "/dev/fdset/4"},
        {"driver": "usb-storage", "id": "usb2", "bus": "usb.0", "port": "3", "drive": "usb2.0", "removable": True},
        {"driver": "usb-redir", "id": "usb3", "bus": "usb.0", "port": "4", "chardev": "usb3"},
    ]
    backend = {"addr": {"type": "fd", "data": {"str": "usb3"}}, "server": False}
    assert orders(lab, "getfd", "chardev-add") == [
        ("getfd", {"fdname": "usb3"}),
        ("chardev-add", {"id": "usb3", "backend": {"type": "socket", "data": backend}}),
    ]
    assert ("add-fd", {"opaque": "usb0"}) in lab.monitor.orders
    # What a device stood on is let go of when it has gone.
    lab.monitor.answers["query-fdsets"] = [
        {"fdset-id": 4, "fds": [{"fd": 1, "opaque": "usb0"}]},
        {"fdset-id": 5, "fds": [{"fd": 2}]},
    ]
    left: list[str] = []
    domain.on_unplugged(left.append)
    await domain.unplug("usb0")
    lab.monitor.event("DEVICE_DELETED", device="usb0", path="/machine/peripheral/usb0")
    await until(lambda: left == ["usb0"])
    assert orders(lab, "device_del", "remove-fd") == [("device_del", {"id": "usb0"}), ("remove-fd", {"fdset-id": 4})]


async def test_a_usb_device_that_qemu_refuses_leaves_nothing(lab: Lab, tmp_path: Path) -> None:
    lab.monitor.answers |= {"query-fdsets": [], "query-named-block-nodes": []}
    lab.monitor.refusals["device_add"] = "no port is free"
    domain = lab.domain(type=DomainType.HVM, usb=True)
    with socket.create_server(("127.0.0.1", 0)) as server:
        far = UsbDevice(type=UsbType.REDIR, peer=f"127.0.0.1:{server.getsockname()[1]}")
        with pytest.raises(EngineError, match="'web': QEMU refused device_add: no port is free"):
            await domain.plug(far, with_devices(domain, usb=True, usbdev=(far,)))
    assert [name for name, _ in lab.monitor.orders][-3:] == [
        "chardev-remove",
        "query-named-block-nodes",
        "query-fdsets",
    ]


async def test_a_pci_device_is_opened_to_the_domains_user(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    limits: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda which: (resource.RLIM_INFINITY,) * 2)
    monkeypatch.setattr(resource, "prlimit", lambda pid, which, both: limits.append((pid, both[1])))
    domain = lab.domain(type=DomainType.HVM)
    domain.spec = msgspec.structs.replace(domain.spec, uid=4711)
    domain.tree = tree = make_tree(tmp_path / "host")
    nic = PciDevice(NIC)
    node = tree.dev / "vfio/12"
    lab.monitor.refusals["device_add"] = "vfio: no"
    with pytest.raises(EngineError, match="vfio: no"):
        await domain.plug(nic, with_devices(domain, pci=(nic,)))
    assert node.stat().st_uid == 0
    lab.monitor.refusals.clear()
    limits.clear()
    await domain.plug(nic, with_devices(domain, pci=(nic,)))
    place = {"bus": "pci.0", "addr": "0x6"}
    assert lab.monitor.orders[-1] == (
        "device_add",
        {"driver": "vfio-pci", "id": "pci-0000-03-00.0", "host": NIC, **place},
    )
    assert node.stat().st_uid == 4711
    assert limits == [(lab.pid, vfio.locked_bytes(domain.spec))]
    lab.monitor.event("DEVICE_DELETED", device="pci-0000-03-00.0")
    await until(lambda: node.stat().st_uid == 0)
    assert domain.spec.config.pci == ()


async def test_devices_that_are_not_there_have_left(lab: Lab) -> None:
    lab.monitor.answers |= {"qom-list": [{"name": "usb"}, {"name": "usb1"}], "query-fdsets": []}
    lab.monitor.answers["query-named-block-nodes"] = []
    sticks = tuple(UsbDevice(type=UsbType.DISK, target=f"/{n}") for n in range(2))
    domain = lab.domain(type=DomainType.HVM, usbdev=sticks, pci=(PciDevice(NIC),))
    domain.spec = laid_out(domain.spec)
    left: list[str] = []
    domain.on_unplugged(left.append)
    await domain.learn_devices()
    await until(lambda: left == ["pci-0000-03-00.0", "usb0"])

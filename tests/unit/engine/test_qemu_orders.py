"""What a QEMU is told for each order, and what is made of what it says: against a monitor that only takes notes."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from pyxen.api import Trigger
from pyxen.config.model import DomainConfig, DomainType
from pyxen.engine.contract import DomainSpec, StartedInfo
from pyxen.engine.inotify import Inotify
from pyxen.engine.process import kill_all, marker, spawn
from pyxen.engine.qemu.domain import QemuDomain
from pyxen.errors import EngineError, Unsupported

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

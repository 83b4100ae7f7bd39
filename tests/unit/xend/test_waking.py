"""Clones' guests are told who they are, and are on no bridge before."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
from pathlib import Path

import msgspec
import pytest

from pyxen import agent_api
from pyxen.api import CreateRequest
from pyxen.config.model import Vif
from pyxen.engine.contract import DomainSpec
from pyxen.errors import Conflict, NotFound, PyxenError, Unsupported
from pyxen.snapshot_api import CloneRequest, SnapshotRequest
from pyxen.xend import waking
from pyxen.xend.agent import Agents
from pyxen.xend.registry import Live
from tests.unit.xend.conftest import Xend, describe
from tests.unit.xend.test_life import Boot, until

pytestmark = pytest.mark.anyio
OLD, KEPT = "00:16:3e:00:00:01", "00:16:3e:00:00:02"


class Guest:
    """What the agents of all guests would hear."""

    def __init__(self) -> None:
        self.answer: tuple[int, str] | PyxenError = (0, "")
        self.told: list[str] = []
        self.asked: list[dict[str, str]] = []
        self.files = {"/etc/machine-id": "before\n", "/proc/sys/kernel/hostname": "web\n"}
        self.refuses: dict[str, PyxenError] = {}
        self.joined: list[tuple[str, str]] = []

    async def tell_restored(self, _agents: Agents, live: Live) -> None:
        self.told.append(live.spec.config.name)

    async def run(self, _agents: Agents, _live: Live, request: agent_api.ExecRequest) -> tuple[int, str]:
        self.asked.append(dict(request.env))
        if isinstance(self.answer, PyxenError):
            raise self.answer
        return self.answer


@pytest.fixture
def guest(monkeypatch: pytest.MonkeyPatch) -> Guest:
    guest = Guest()

    async def told(agents: Agents, live: Live) -> None:
        await guest.tell_restored(agents, live)

    async def run(agents: Agents, live: Live, request: agent_api.ExecRequest) -> tuple[int, str]:
        return await guest.run(agents, live, request)

    async def size(_agents: Agents, _live: Live, request: agent_api.ReadFileRequest) -> int:
        if request.path not in guest.files:
            raise NotFound("no such file")
        return len(guest.files[request.path])

    async def write(_agents: Agents, _live: Live, request: agent_api.WriteFileRequest, data: bytes) -> None:
        if isinstance(guest.answer, PyxenError):
            raise guest.answer
        if request.path in guest.refuses:
            raise guest.refuses[request.path]
        guest.files[request.path] = data.decode()

    monkeypatch.setattr(Agents, "size", size)
    monkeypatch.setattr(Agents, "write", write)
    monkeypatch.setattr(Agents, "tell_restored", told)
    monkeypatch.setattr(Agents, "run", run)
    monkeypatch.setattr(waking, "join", lambda name, bridge: guest.joined.append((name, bridge)))
    return guest


async def with_source(xend: Xend) -> None:
    vifs = (Vif(bridge="br0", mac=OLD), Vif(mac=KEPT))
    await xend.domains.create(CreateRequest(config=describe("web", vif=vifs)))
    await xend.domains.snapshots.create("web", SnapshotRequest("base"))


def spec_of(xend: Xend, name: str) -> DomainSpec:
    """What a later xend would read."""
    domid = xend.domains.get(name).domid
    assert domid is not None
    return msgspec.json.decode((xend.life.directory(domid) / "domain.json").read_bytes(), type=DomainSpec)


async def test_a_clone_gets_new_addresses_and_then_its_bridge(boot: Boot, guest: Guest) -> None:
    xend = await boot()
    await with_source(xend)
    made = await xend.domains.clone("web", CloneRequest("two", "base"))
    assert any("not on their bridges" in warning for warning in made.warnings)
    await until(lambda: spec_of(xend, "two").waking is None)
    new = spec_of(xend, "two").config.vif[0].mac
    assert new != OLD
    assert guest.joined == [(f"vif{made.domid}.0", "br0")]
    (env,) = guest.asked
    assert env["NEW_MACS"] == f"{OLD} {new}", "vifs that are on no bridge stay as they are"
    assert guest.files["/proc/sys/kernel/hostname"] == "web\n", "no image: what it is called is the guest's business"
    assert re.fullmatch("[0-9a-f]{32}\n", guest.files["/etc/machine-id"])
    assert guest.told == ["two"]
    await xend.domains.snapshots.create("two", SnapshotRequest("base"))


@pytest.mark.parametrize("answer", [(1, "no card"), Unsupported("no agent")], ids=["refused", "no agent"])
async def test_a_guest_that_cannot_be_told_is_asked_again_by_a_later_xend(
    boot: Boot, guest: Guest, answer: tuple[int, str] | PyxenError
) -> None:
    xend = await boot()
    await with_source(xend)
    guest.answer = answer
    await xend.domains.clone("web", CloneRequest("two", "base"))
    await until(lambda: "domain-offline" in xend.kinds())
    assert not guest.joined
    assert [each.state for each in xend.domains.devices.list("two").vifs] == ["waiting", "attached"]
    with pytest.raises(Conflict, match="has not got its own addresses yet"):
        await xend.domains.snapshots.create("two", SnapshotRequest("of-two"))
    await xend.die()
    guest.answer = (0, "")
    again = await boot()
    await until(lambda: spec_of(again, "two").waking is None)
    assert [each.state for each in again.domains.devices.list("two").vifs] == ["attached", "attached"]
    assert len(guest.joined) == 1


async def test_one_that_is_paused_is_told_when_it_runs(boot: Boot, guest: Guest, tmp_path: Path) -> None:
    xend = await boot()
    await with_source(xend)
    await xend.domains.clone("web", CloneRequest("two", "base", paused=True))
    await asyncio.sleep(0)
    assert not guest.told
    await xend.domains.unpause("two")
    await until(lambda: bool(guest.joined))
    await xend.domains.pause("two")
    await xend.domains.unpause("two")
    await xend.life.settle()
    assert guest.told == ["two"], "once is enough"


@pytest.mark.parametrize("how", ["read-only", "empty", "missing"])
async def test_some_guests_have_no_identity(boot: Boot, guest: Guest, how: str) -> None:
    xend = await boot()
    await xend.domains.create(CreateRequest(config=describe("web")))
    await xend.domains.snapshots.create("web", SnapshotRequest("base"))
    match how:
        case "read-only":
            guest.refuses["/etc/machine-id"] = Conflict("cannot write /etc/machine-id: Read-only file system")
        case "empty":
            guest.files["/etc/machine-id"] = ""
        case _:
            del guest.files["/etc/machine-id"]
    before = dict(guest.files)
    await xend.domains.clone("web", CloneRequest("two", "base"))
    await until(lambda: spec_of(xend, "two").waking is None)
    assert guest.files == before
    assert guest.asked == [], "without MACs no shell is started"


@pytest.mark.parametrize(("name", "hostname"), [("web-2", "web-2"), ("web_2", None)])
def test_a_host_name_is_what_can_be_one(name: str, hostname: str | None) -> None:
    assert waking.waking_of(name, named=True, macs={}).hostname == hostname
    assert waking.waking_of(name, named=False, macs={}).hostname is None


_ROOM = """
mount -t sysfs sys /sys
ip link add card0 address 00:16:3e:00:00:01 type veth peer name card1 && ip link set card0 up || exit 9
for again in 1 2; do /bin/sh -c "$0" || echo "status $?"; done
cat /sys/class/net/card0/address /sys/class/net/card0/flags
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="namespaces of its own need root")
@pytest.mark.parametrize(
    ("macs", "address", "said"),
    [
        (f"{OLD} 00:16:3e:00:00:09", "00:16:3e:00:00:09", ""),
        ("", OLD, ""),
        ("00:16:3e:ff:ff:ff 00:16:3e:00:00:09", OLD, "it has no network card with the address 00:16:3e:ff:ff:ff"),
    ],
)
def test_what_a_guest_runs(macs: str, address: str, said: str) -> None:
    """Twice, in namespaces of its own: of processes, network and mounts."""
    inside = ["unshare", "--fork", "--pid", "--mount-proc", "--net", "--mount", "sh", "-c", _ROOM]
    env = {"PATH": os.environ["PATH"] + ":/usr/sbin:/sbin", "NEW_MACS": macs}
    done = subprocess.run([*inside, waking._SCRIPT], env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(done.stderr)
    *problems, found, flags = done.stdout.split("\n")[:-1]
    assert found == address
    assert int(flags, 16) & 1, "it is up"
    assert problems == (["status 1"] * 2 if said else [])
    assert said in done.stderr

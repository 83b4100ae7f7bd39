"""The Xen engine with a kernel of a few bytes, which any KVM can run: a real process, a real jail, real orders."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pyxen.api import ShutdownReason
from pyxen.config.model import Disk, DiskFormat, DomainConfig, Vif
from pyxen.engine.contract import DomainSpec, Limits, Moving, RunningDomain, Stopped
from pyxen.engine.domain import load_info
from pyxen.engine.inotify import Inotify
from pyxen.engine.process import find
from pyxen.engine.template import Template
from pyxen.engine.xen import XenDomain, XenEngine
from pyxen.errors import Conflict, EngineError, InvalidRequest, Unsupported
from pyxen.hypervisor.jail import Report
from tests.unit.hypervisor.builder import elves
from tests.unit.hypervisor.jail.cell import IS_ROOT, PRISONER, folder
from tests.unit.hypervisor.kvm.micro import needs_kvm
from tests.unit.hypervisor.state.guests import sleeper, writer

pytestmark = [pytest.mark.anyio, needs_kvm]
# hlt; jmp to it. Then what makes it a Linux, as far as the builder is concerned.
_KERNEL = elves.linux_like(bytes.fromhex("f4 eb fd").ljust(16, b"\x90") + elves.jumping_pair())
_SOON_S = 30


@pytest.fixture
def place() -> Iterator[Path]:
    with folder(ordinary=False) as path:
        yield path


@pytest.fixture
async def engine(place: Path) -> AsyncIterator[XenEngine]:
    found = XenEngine(place, Inotify())
    yield found
    found.reap(place / "domains" / "3")


async def start(
    engine: XenEngine,
    place: Path,
    *,
    paused: bool = False,
    kernel: bytes = _KERNEL,
    state: int | None = None,
    machine: str | None = None,
    template: Template | None = None,
    late_disks: bool = False,
    **config: Any,
) -> tuple[RunningDomain, Path]:
    directory = place / "domains" / "3"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    for name in ("events", "console.log"):
        (directory / name).touch(mode=0o600)
    os.mkfifo(directory / "console.in", 0o600)
    (place / "vmlinux").write_bytes(kernel)
    (place / "disk").write_bytes(bytes(1 << 20))
    disk = Disk(vdev="xvda", target=str(place / "disk"), format=DiskFormat.RAW)
    spec = DomainSpec(
        domid=3,
        uuid="00000000-0000-0000-0000-000000000003",
        config=DomainConfig(**{"name": "micro", "memory": 64, "vcpus": 2, "disk": (disk,), **config}),
        kernel=str(place / "vmlinux"),
        uid=PRISONER if IS_ROOT else None,
        machine=machine,
    )
    return await engine.start(
        spec, directory, paused=paused, state=state, template=template, late_disks=late_disks
    ), directory


async def end_of(domain: RunningDomain) -> Stopped:
    future: asyncio.Future[Stopped] = asyncio.get_running_loop().create_future()
    domain.on_stopped(future.set_result)
    return await asyncio.wait_for(future, _SOON_S)


async def ask(directory: Path, command: str, **arguments: object) -> Any:
    """An order, and what the process returns."""
    reader, writer = await asyncio.open_unix_connection(directory / "control.sock")
    writer.write(msgspec.json.encode({"execute": command, "arguments": arguments}) + b"\n")
    answer = msgspec.json.decode(await asyncio.wait_for(reader.readline(), _SOON_S))
    writer.close()
    await writer.wait_closed()
    return answer["return"]


async def test_the_process_runs_in_its_jail(engine: XenEngine, place: Path) -> None:
    domain, directory = await start(engine, place)
    report = msgspec.convert((await ask(directory, "status"))["jail"], Report)
    assert domain.info.jail[: len(report.layers)] == report.layers
    assert {"descriptors", "limits", "no capabilities", "seccomp"} <= set(report.layers)
    assert bool(domain.info.warnings) == bool(report.missing)
    assert load_info(directory) == domain.info
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{domain.pid}/status").read_text().splitlines())
    user = str(PRISONER if IS_ROOT else os.geteuid())
    assert status["Uid"].split() == [user] * 4
    assert [status[key] for key in ("NoNewPrivs", "Seccomp")] == ["1", "2"]
    assert [status[key] for key in ("CapPrm", "CapEff", "CapAmb")] == ["0" * 16] * 3
    names = {Path(task, "comm").read_text().strip() for task in Path(f"/proc/{domain.pid}/task").iterdir()}
    assert {"CPU 0/KVM", "CPU 1/KVM"} <= names
    await domain.destroy()


@pytest.mark.skipif(not IS_ROOT, reason="only root may look into such a process")
async def test_what_root_sees_of_it(engine: XenEngine, place: Path) -> None:
    lost = os.open(place, os.O_RDONLY)
    os.set_inheritable(lost, True)
    domain, directory = await start(engine, place)
    os.close(lost)
    proc = Path(f"/proc/{domain.pid}")
    status = dict(line.split(":\t", 1) for line in (proc / "status").read_text().splitlines())
    assert status["Groups"].split() == [] and status["CapBnd"] == "0" * 16
    assert status["Gid"].split() == [str(PRISONER)] * 4
    if "empty root" in domain.info.jail:
        assert list((proc / "root").iterdir()) == []
        for kind in ("mnt", "net", "ipc", "uts"):
            assert os.readlink(proc / "ns" / kind) != os.readlink(f"/proc/self/ns/{kind}")
        assert len((proc / "mountinfo").read_text().splitlines()) == 1
    fds = list((proc / "fd").iterdir())
    assert not any(stat.S_ISDIR(fd.stat().st_mode) for fd in fds)
    files = {link for link in map(os.readlink, fds) if link.startswith(str(place))}
    names = ("console.in", "console.log", "events", "stderr")
    assert files == {str(place / "disk"), *(str(directory / name) for name in names)}
    await domain.destroy()


async def test_it_lives_behind_bars(engine: XenEngine, place: Path) -> None:
    """Orders, callers of both sockets, what is typed; and its end, for which it says goodbye in its files."""
    domain, directory = await start(engine, place, paused=True)
    assert domain.paused
    await domain.unpause()
    await domain.pause()
    assert domain.paused
    await domain.unpause()
    assert isinstance(domain, XenDomain)
    config = msgspec.structs.replace(domain.spec.config, name="other")
    await domain.rename(msgspec.structs.replace(domain.spec, config=config))
    assert await asyncio.to_thread(_xenstore, directory, b"/local/domain/3/name\0") == b"other"
    await ask(directory, "set-vcpus", count=1)
    await ask(directory, "set-memory", mib=32)
    assert "    VCPU1: down upcall_pend=00" in await domain.debug_key("q")
    assert (await domain.debug_key("g"))[-1] == "no active grant table entries"
    assert "       1 [0]: s=2 n=0 d=0 p=1" in await domain.debug_key("e"), "the console's back end is bound"
    with pytest.raises(InvalidRequest, match="no debug key 'x'"):
        await domain.debug_key("x")
    await domain.request_shutdown("poweroff")
    with (directory / "console.in").open("wb") as file:
        file.write(b"typed\n")
    assert await asyncio.to_thread(_xenstore, directory, b"/local/domain/3/control/shutdown\0") == b"poweroff"
    assert domain.statistics().resident_mib > 0
    await ask(directory, "crash")
    assert (await end_of(domain)).reason is ShutdownReason.CRASH
    assert domain.alive
    await domain.destroy()
    assert not domain.alive
    assert (directory / "stderr").read_text() == ""


def _xenstore(directory: Path, path: bytes) -> bytes:
    """XS_READ, by hand."""
    with socket.socket(socket.AF_UNIX) as store:
        store.settimeout(_SOON_S)
        store.connect(str(directory / "xenstore.sock"))
        store.sendall(b"".join(word.to_bytes(4, sys.byteorder) for word in (2, 1, 0, len(path))) + path)
        answer = b""
        while len(answer) < 16 or len(answer) < 16 + int.from_bytes(answer[12:16], sys.byteorder):
            answer += store.recv(4096)
    return answer[16:]


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed (apt-get install qemu-utils)")
async def test_other_processes_serve_its_disks_and_networks(engine: XenEngine, place: Path) -> None:
    image = place / "disk.qcow2"
    await asyncio.to_thread(subprocess.check_call, ["qemu-img", "create", "-q", "-f", "qcow2", image, "64M"])
    disk = Disk(vdev="xvda", target=str(image), format=DiskFormat.QCOW2)
    domain, directory = await start(engine, place, disk=(disk,), vif=(Vif(mac="00:16:3e:00:00:01"),))
    report = msgspec.convert((await ask(directory, "status"))["jail"], Report)
    assert "seccomp" in report.layers and bool(domain.info.warnings) == bool(report.missing)
    await domain.destroy()
    assert find(directory) == []


async def test_a_forbidden_call_is_named_as_the_end(engine: XenEngine, place: Path) -> None:
    domain, _ = await start(engine, place)
    os.kill(domain.pid, signal.SIGSYS)  # as the filter does
    stopped = await end_of(domain)
    assert stopped.reason is ShutdownReason.FAILED
    assert stopped.detail == (
        "it made a system call that its jail does not allow; with PYXEN_JAIL=trap it would say which"
    )


async def test_without_a_jail_there_is_a_warning(
    engine: XenEngine, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYXEN_JAIL", "off")
    domain, _ = await start(engine, place)
    assert domain.info.warnings == ["the jail of its process has gaps: all of it: PYXEN_JAIL is off"]
    assert "seccomp" not in domain.info.jail
    await domain.destroy()


async def test_a_word_that_is_no_mode_starts_nothing(
    engine: XenEngine, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYXEN_JAIL", "perhaps")
    with pytest.raises(EngineError, match=r"PYXEN_JAIL is 'perhaps'\nIt can be one of on, require, trap, log, off\."):
        await start(engine, place)


async def until(domain: RunningDomain, suspended: bool) -> None:
    assert isinstance(domain, XenDomain)
    await domain.wait_suspended(suspended, _SOON_S)


async def printed(directory: Path, text: str) -> None:
    end = asyncio.get_running_loop().time() + _SOON_S
    while text not in (directory / "console.log").read_text():
        assert asyncio.get_running_loop().time() < end, f"{text!r} is never printed"
        await asyncio.sleep(0.01)


async def test_a_guest_that_suspends_itself_goes_on_here_and_in_another_process(engine: XenEngine, place: Path) -> None:
    domain, directory = await start(engine, place, kernel=sleeper())
    await until(domain, True)
    machine = await domain.machine()
    await domain.freeze()
    with (place / "state").open("wb") as file:
        await domain.save_state(file.fileno())
    await domain.thaw()
    await printed(directory, "resumed!\n")
    await domain.destroy()
    with (place / "state").open("rb") as file:
        other, directory = await start(engine, place, kernel=b"no kernel", state=file.fileno(), machine=machine)
        await printed(directory, "restored\n")
        await other.destroy()
        with pytest.raises(Unsupported, match=r"saved in the form xen-0, this pyxen reads xen-1"):
            await start(engine, place, state=file.fileno(), machine="xen-0")
        with pytest.raises(EngineError, match="the state is damaged: it ends too early"):
            await start(engine, place, state=file.fileno(), machine=machine)


async def test_a_running_guest_is_sent_and_is_not_when_that_is_called_off(engine: XenEngine, place: Path) -> None:
    domain, directory = await start(engine, place, kernel=writer(150))
    machine = await domain.machine()
    told: list[Moving] = []
    begun = asyncio.Event()
    out, into = os.pipe()
    sending = asyncio.create_task(domain.send_live(into, Limits(), lambda moving: begun.set()))
    await begun.wait()
    sending.cancel()  # nobody reads, so it has not come far
    await asyncio.gather(sending, return_exceptions=True)
    await domain.thaw()
    for fd in (out, into):
        os.close(fd)
    with (place / "state").open("wb") as file:
        await domain.send_live(file.fileno(), Limits(bandwidth=64 << 20), told.append)
    assert domain.suspended
    assert told[-1].rounds > 1
    assert told[-1].remaining == 0
    assert told[-1].stopped_s > 0
    await domain.thaw()
    await printed(directory, "the same\n")
    await domain.destroy()
    with (place / "state").open("rb") as file:
        other, directory = await start(engine, place, kernel=b"no kernel", state=file.fileno(), machine=machine)
    await printed(directory, "the same\n")
    await other.destroy()


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed (apt-get install qemu-utils)")
async def test_a_served_disk_is_another_ones_once_the_guest_is_sent(engine: XenEngine, place: Path) -> None:
    image = place / "disk.qcow2"
    await asyncio.to_thread(subprocess.check_call, ["qemu-img", "create", "-q", "-f", "qcow2", image, "64M"])
    image.chmod(0o666)
    disk = Disk(vdev="xvdb", target=str(image), format=DiskFormat.QCOW2)

    def is_free() -> bool:
        return subprocess.run(["qemu-img", "check", "-q", "-r", "leaks", image], check=False).returncode == 0

    domain, directory = await start(engine, place, kernel=writer(20), disk=(disk,))
    assert not is_free()
    with (place / "state").open("wb") as file:
        await domain.send_live(file.fileno(), Limits(), lambda moving: None)
    assert is_free()
    assert isinstance(domain, XenDomain)
    domain.close()
    again = await engine.adopt(domain.spec, directory)
    assert again is not None
    assert is_free(), "an xend that comes later knows"
    await again.thaw()
    assert await ask(directory, "devices") == {"attached": ["xvdb"], "held": []}
    assert not is_free()
    await printed(directory, "the same\n")
    await again.destroy()


async def test_disks_that_are_still_in_use_elsewhere_come_when_the_guest_goes_on(
    engine: XenEngine, place: Path
) -> None:
    domain, directory = await start(engine, place, kernel=sleeper())
    await until(domain, True)
    machine = await domain.machine()
    with (place / "state").open("wb") as file:
        await domain.save_state(file.fileno())
    await domain.destroy()
    with (place / "state").open("rb") as file:
        other, directory = await start(
            engine, place, paused=True, state=file.fileno(), machine=machine, late_disks=True
        )
    assert isinstance(other, XenDomain)
    spec, gone = other.spec, list[str]()
    for _ in range(2):
        other.on_unplugged(gone.append)
        assert await ask(directory, "devices") == {"attached": [], "held": []}
        other.close()
        adopted = await engine.adopt(spec, directory)
        assert isinstance(adopted, XenDomain)
        other = adopted
    await other.unpause()
    assert await ask(directory, "devices") == {"attached": ["xvda"], "held": []}
    await printed(directory, "restored\n")
    await other.pause()
    await other.unpause()
    assert not gone
    await other.destroy()


async def test_guests_go_on_from_memory_that_they_share(engine: XenEngine, place: Path) -> None:
    domain, directory = await start(engine, place, kernel=writer(2))
    await until(domain, True)
    machine = await domain.machine()
    with (place / "state").open("wb") as file:
        await domain.save_state(file.fileno())
    await domain.destroy()
    template = Template(64 << 20)
    with (place / "state").open("rb") as file:
        first, directory = await start(
            engine, place, kernel=b"no kernel", state=file.fileno(), machine=machine, template=template
        )
    assert template.full
    await printed(directory, "the same\n")
    if IS_ROOT:
        maps = Path(f"/proc/{first.pid}/maps").read_text()
        assert re.search(r"rw-p .* /memfd:guest", maps)
        assert not re.search(r"w-s .* /memfd:guest", maps)
    await first.destroy()
    second, directory = await start(engine, place, kernel=b"no kernel", machine=machine, template=template)
    await printed(directory, "the same\n")
    await second.destroy()
    template.close()


async def test_a_template_is_not_filled_from_what_is_damaged(engine: XenEngine, place: Path) -> None:
    (place / "state").write_bytes(b"pyxen state".ljust(16, b"\0") + b"\x01".ljust(16, b"\0") + b"HEAD")
    template = Template(64 << 20)
    with (
        (place / "state").open("rb") as file,
        pytest.raises(EngineError, match="state of 'micro': the state is damaged"),
    ):
        await start(engine, place, state=file.fileno(), machine="xen-1", template=template)
    assert not template.full
    template.close()


async def test_a_guest_that_can_not_suspend_itself_is_not_saved(engine: XenEngine, place: Path) -> None:
    domain, directory = await start(engine, place, paused=True)
    with pytest.raises(Conflict, match="paused"):
        await domain.freeze()
    await domain.unpause()
    with (place / "state").open("wb") as file, pytest.raises(Conflict, match="it is not suspended"):
        await domain.save_state(file.fileno())
    await ask(directory, "shutdown", reason="suspend")
    assert await ask(directory, "withdraw") == {"expected": False}, "nobody has taken the order"
    await domain.thaw()
    assert not domain.paused
    await domain.destroy()

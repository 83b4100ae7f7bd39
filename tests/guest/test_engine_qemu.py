"""The QEMU engine with real kernels, without xend above it."""

from __future__ import annotations

import asyncio
import base64
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from pyxen.api import ShutdownReason
from pyxen.config.model import (
    Accelerator,
    Disk,
    DiskAccess,
    DiskFormat,
    DiskType,
    DomainConfig,
    DomainType,
    Firmware,
    Forward,
    Vif,
)
from pyxen.engine.contract import DomainSpec, RunningDomain, Stopped
from pyxen.engine.inotify import Inotify
from pyxen.engine.process import find
from pyxen.engine.qemu import QemuEngine
from pyxen.errors import Conflict, EngineError, ResourceExhausted
from pyxen.image.kernel import unpack
from tests.guest.host import CACHE

pytestmark = pytest.mark.anyio

DEADLINE_S = 120
UID = 390_001
"""A user without a name, as xend gives one to each domain when it is root."""


@pytest.fixture
def root() -> Iterator[Path]:
    """A folder that other users may pass, unlike pytest's own."""
    path = Path(tempfile.mkdtemp(prefix="pyxen-engine-", dir="/tmp"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)


@pytest.fixture
async def inotify() -> AsyncIterator[Inotify]:
    inotify = Inotify()
    yield inotify
    inotify.close()


@pytest.fixture
async def engine(root: Path, inotify: Inotify) -> AsyncIterator[QemuEngine]:
    engine = QemuEngine(root / "state", inotify)
    yield engine
    left = [directory for directory in root.glob("domains/*") if find(directory)]
    for directory in left:
        engine.reap(directory)
    assert left == []


class Lab:
    """Makes specs and folders as xend does, and remembers what it started."""

    def __init__(self, root: Path, engine: QemuEngine, inotify: Inotify, image: Path) -> None:
        self.root = root
        self.engine = engine
        self.inotify = inotify
        (folder,) = (path for path in image.iterdir() if path.is_dir())
        self.vmlinuz = folder / "vmlinuz"
        self.vmlinux = unpack(self.vmlinuz, CACHE / "kernels").vmlinux
        self.ramdisk = folder / "ramdisk"
        self.started: list[RunningDomain] = []
        self._next = 1

    def spec(self, script: str | None = None, **changes: object) -> DomainSpec:
        """A domain that runs ``script`` and powers off, or gives a shell."""
        domid, self._next = self._next, self._next + 1
        config = DomainConfig(name=f"guest{domid}", memory=192, accel=Accelerator.TCG)
        config = msgspec.structs.replace(config, **changes)
        cmdline = "quiet" if script is None else f"quiet tiny.run={base64.b64encode(script.encode()).decode()}"
        kernel = self.vmlinux if config.type is DomainType.PVH else self.vmlinuz
        return DomainSpec(
            domid=domid,
            uuid=f"00000000-0000-0000-0000-{domid:012}",
            config=config,
            kernel=str(kernel),
            ramdisk=str(self.ramdisk),
            cmdline=cmdline,
            uid=UID + domid if os.geteuid() == 0 else None,
        )

    def directory(self, spec: DomainSpec) -> Path:
        return self.root / "domains" / str(spec.domid)

    def make_directory(self, spec: DomainSpec) -> Path:
        directory = self.directory(spec)
        directory.parent.mkdir(mode=0o711, exist_ok=True)
        directory.mkdir(mode=0o700)
        for name in ("console.log", "events"):
            (directory / name).touch(mode=0o600)
        os.mkfifo(directory / "console.in", 0o600)
        return directory

    async def start(self, spec: DomainSpec, *, paused: bool = False) -> RunningDomain:
        domain = await self.engine.start(spec, self.make_directory(spec), paused=paused)
        self.started.append(domain)
        return domain

    def output(self, spec: DomainSpec) -> str:
        return (self.directory(spec) / "console.log").read_bytes().decode(errors="replace")

    async def see(self, spec: DomainSpec, text: str) -> str:
        """Wait until the guest has printed ``text``."""
        return await self.see_any(spec, lambda output: text in output, text)

    async def see_any(self, spec: DomainSpec, found: Callable[[str], bool], what: str) -> str:
        changed = asyncio.Event()
        unwatch = self.inotify.watch(self.directory(spec) / "console.log", changed.set)
        try:
            async with asyncio.timeout(DEADLINE_S):
                while not found(output := self.output(spec)):
                    changed.clear()
                    await changed.wait()
        except TimeoutError:
            raise AssertionError(f"the guest never printed {what!r} but:\n{self.output(spec)}") from None
        finally:
            unwatch()
        return output

    def type(self, spec: DomainSpec, text: str) -> None:
        fd = os.open(self.directory(spec) / "console.in", os.O_WRONLY | os.O_NONBLOCK)
        os.write(fd, text.encode())
        os.close(fd)

    async def end_of(self, domain: RunningDomain) -> Stopped:
        future: asyncio.Future[Stopped] = asyncio.get_running_loop().create_future()
        domain.on_stopped(future.set_result)
        return await asyncio.wait_for(future, DEADLINE_S)


@pytest.fixture
async def lab(root: Path, engine: QemuEngine, inotify: Inotify, tiny: Path) -> AsyncIterator[Lab]:
    lab = Lab(root, engine, inotify, tiny)
    yield lab
    for domain in lab.started:
        await domain.destroy()
        domain.close()


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("/sbin/poweroff", ShutdownReason.POWEROFF),
        ("/sbin/reboot", ShutdownReason.REBOOT),
        ("echo c >/proc/sysrq-trigger", ShutdownReason.CRASH),
    ],
)
async def test_each_end_has_its_reason_and_leaves_the_process(lab: Lab, script: str, reason: ShutdownReason) -> None:
    spec = lab.spec(script)
    domain = await lab.start(spec)
    assert not domain.paused
    assert domain.info.accelerator == "tcg"
    assert await lab.end_of(domain) == Stopped(reason)
    assert alive(domain.pid)
    with pytest.raises(Conflict, match="has stopped"):
        await domain.unpause()
    await domain.destroy()
    assert not alive(domain.pid)
    assert domain.stopped == Stopped(reason)


async def test_the_guest_runs_as_nobody_with_nothing(lab: Lab) -> None:
    domain = await lab.start(lab.spec(), paused=True)
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{domain.pid}/status").read_text().splitlines() if ":\t" in line
    )
    assert status["Seccomp"] == "2"
    if os.geteuid() == 0:
        uid = str(UID + 1)
        assert status["Uid"].split() == status["Gid"].split() == [uid] * 4
        assert status["Groups"].split() == []
        assert {status[name].strip("0") for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {""}
        assert status["NoNewPrivs"] == "1"


async def test_pausing_typing_and_the_power_button(lab: Lab) -> None:
    spec = lab.spec()
    domain = await lab.start(spec, paused=True)
    assert domain.paused and lab.output(spec) == ""
    await domain.unpause()
    await lab.see(spec, "tiny:~# ")
    await domain.pause()
    assert domain.paused
    lab.type(spec, "echo $((6 * 7))\n")
    statistics = domain.statistics()
    assert statistics.cpu_time_s > 0 and statistics.blocked and statistics.resident_mib > 10
    assert [vcpu.state for vcpu in statistics.vcpus] == ["--p"]
    await domain.unpause()
    await lab.see(spec, "\r\n42\r\n")
    assert domain.statistics().vcpus[0].time_s > 0
    await domain.request_shutdown("poweroff")
    assert (await lab.end_of(domain)).reason is ShutdownReason.POWEROFF


async def test_destroy_and_sigkill(lab: Lab) -> None:
    first, second = lab.spec(), lab.spec()
    destroyed, killed = await lab.start(first), await lab.start(second)
    await destroyed.destroy()
    assert not alive(destroyed.pid)
    assert destroyed.stopped == Stopped(ShutdownReason.DESTROYED)
    os.kill(killed.pid, signal.SIGKILL)
    assert (await lab.end_of(killed)).reason is ShutdownReason.FAILED
    assert await lab.engine.adopt(second, lab.directory(second)) is None


STARTER = """
import asyncio, os, signal, sys
from pathlib import Path
import msgspec
from pyxen.engine.contract import DomainSpec
from pyxen.engine.inotify import Inotify
from pyxen.engine.qemu import QemuEngine
async def main():
    directory = Path(sys.argv[1])
    spec = msgspec.json.decode((directory / "domain.json").read_bytes(), type=DomainSpec)
    await QemuEngine(Path(sys.argv[2]), Inotify()).start(spec, directory, paused=False)
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""


async def test_a_domain_outlives_who_started_it(lab: Lab) -> None:
    spec = lab.spec(vif=(Vif(mac="00:16:3e:00:00:01", forward=(Forward(host=free_port(), guest=80),)),))
    directory = lab.make_directory(spec)
    (directory / "domain.json").write_bytes(msgspec.json.encode(spec))
    words = [sys.executable, "-c", STARTER, str(directory), str(lab.root / "state")]
    starter = await asyncio.to_thread(subprocess.run, words, check=False, capture_output=True)
    assert starter.returncode == -signal.SIGKILL, starter.stderr.decode()
    domain = await lab.engine.adopt(spec, directory)
    assert domain is not None
    lab.started.append(domain)
    assert domain.stopped is None and not domain.paused
    assert domain.info.accelerator == "tcg" and len(domain.info.forwards) == 1
    await lab.see(spec, "tiny:~# ")
    lab.type(spec, "echo $((6 * 7))\n")
    await lab.see(spec, "\r\n42\r\n")
    await domain.pause()
    domain.close()
    again = await lab.engine.adopt(spec, directory)
    assert again is not None and again.paused
    lab.started.append(again)
    await again.unpause()
    again.close()
    lab.type(spec, "/sbin/reboot\n")
    last = await lab.engine.adopt(spec, directory)
    assert last is not None
    lab.started.append(last)
    assert (await lab.end_of(last)).reason is ShutdownReason.REBOOT
    await last.destroy()
    found = await lab.engine.adopt(spec, directory)
    assert found is not None and found.stopped == Stopped(ShutdownReason.REBOOT)
    found.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def make_qcow2(path: Path, *options: str) -> Path:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, str(path), "4M"], check=True)
    return path


async def test_disks_in_layers_by_descriptor_alone(lab: Lab) -> None:
    base = lab.root / "base.img"
    base.write_bytes(b"bottom".ljust(1 << 20, b"\0"))
    base.chmod(0o600)
    top = make_qcow2(lab.root / "top.qcow2", "-b", str(base), "-F", "raw")
    read_only = lab.root / "data.img"
    read_only.write_bytes(b"data".ljust(1 << 20, b"\0"))
    script = (
        "head -c 6 /dev/vda; echo; head -c 4 /dev/vdb; echo\n"
        "cat /sys/block/vda/serial /sys/block/vdb/serial; echo; cat /sys/block/vdb/ro\n"
        "echo above >/dev/vda; sync; echo written; sleep 1000\n"
    )
    disks = (
        Disk(vdev="xvda", target=str(top), format=DiskFormat.QCOW2),
        Disk(vdev="xvdb", target=str(read_only), format=DiskFormat.RAW, access=DiskAccess.READ),
    )
    spec = lab.spec(script, disk=disks)
    domain = await lab.start(spec)
    output = await lab.see(spec, "written")
    assert "bottom\r\ndata\r\nxvdaxvdb\r\n1\r\n" in output
    with pytest.raises(Conflict, match="in use by another process"):
        await lab.start(lab.spec(disk=disks[:1]))
    await domain.destroy()
    assert base.read_bytes()[:6] == b"bottom"
    flat = lab.root / "flat.img"
    await asyncio.to_thread(subprocess.run, ["qemu-img", "convert", "-O", "raw", str(top), str(flat)], check=True)
    assert flat.read_bytes()[:6] == b"above\n"


async def test_a_port_leads_into_the_guest(lab: Lab) -> None:
    port = free_port()
    vif = Vif(mac="00:16:3e:00:00:01", forward=(Forward(host=port, guest=80),))
    spec = lab.spec("while ! ip route | grep -q default; do sleep 1; done\necho hello | nc -l -p 80\n", vif=(vif,))
    domain = await lab.start(spec)
    assert domain.info.forwards == [f"tcp 127.0.0.1:{port} -> 80"]
    with pytest.raises(ResourceExhausted, match=f"port {port} on 127.0.0.1 is in use"):
        await lab.start(lab.spec(vif=(vif,)))
    data = b""
    async with asyncio.timeout(DEADLINE_S):
        while data != b"hello\n":  # QEMU takes the connection at once, and drops it as long as nobody listens inside
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                data = await reader.read()
            except ConnectionResetError:
                data = b""
            finally:
                writer.close()
            await asyncio.sleep(0.1)
    assert (await lab.end_of(domain)).reason is ShutdownReason.POWEROFF


async def test_a_core_is_an_elf_file(lab: Lab) -> None:
    spec = lab.spec("echo c >/proc/sysrq-trigger", memory=160)
    domain = await lab.start(spec)
    await lab.end_of(domain)
    core = lab.root / "core"
    with core.open("wb") as file:
        await domain.dump_core(file.fileno())
    assert core.stat().st_size > 160 << 20
    with core.open("rb") as file:
        assert file.read(4) == b"\x7fELF"
    core.unlink()


async def test_more_memory_than_there_is(lab: Lab) -> None:
    spec = lab.spec(memory=16 * 1024 * 1024)
    with pytest.raises((ResourceExhausted, EngineError)) as caught:
        await lab.start(spec)
    assert caught.value.message.startswith("cannot start 'guest1'")
    assert find(lab.directory(spec)) == []


async def test_an_unreadable_kernel_and_a_deep_folder(lab: Lab) -> None:
    """What only xend may read reaches the domain's user; a socket's path may be longer than an address."""
    kernel = lab.root / "secret-vmlinux"
    shutil.copyfile(lab.vmlinux, kernel)
    kernel.chmod(0o600)
    spec = msgspec.structs.replace(lab.spec("echo it runs"), kernel=str(kernel))
    lab.root = lab.root / ("deep," + "x" * 120)
    lab.root.mkdir(mode=0o711)
    domain = await lab.start(spec)
    await domain.pause()
    await domain.unpause()
    assert (await lab.end_of(domain)).reason is ShutdownReason.POWEROFF
    assert "it runs" in lab.output(spec)


async def test_hvm_boots_a_kernel_directly_and_shows_a_screen(lab: Lab) -> None:
    disk = lab.root / "c.img"
    disk.write_bytes(b"drive c".ljust(1 << 20, b"\0"))
    disc = lab.root / "disc.iso"
    disc.write_bytes(bytes(1 << 20))
    spec = lab.spec(
        "cat /sys/class/dmi/id/sys_vendor; echo it runs; sleep 1000",
        type=DomainType.HVM,
        vnc=True,
        usbdevice=("tablet",),
        vif=(Vif(mac="00:16:3e:00:00:01", model="e1000"),),
        disk=(
            Disk(vdev="hda", target=str(disk), format=DiskFormat.RAW),
            Disk(vdev="hdc", devtype=DiskType.CDROM),
            Disk(vdev="sda", target=str(disc), format=DiskFormat.RAW, devtype=DiskType.CDROM),
        ),
    )
    domain = await lab.start(spec)
    assert domain.info.vnc is not None
    address, _, display = domain.info.vnc.rpartition(":")
    reader, writer = await asyncio.open_connection(address, 5900 + int(display))
    assert (await reader.readexactly(7)) == b"RFB 003"
    writer.close()
    await lab.see(spec, "it runs")


async def test_hvm_with_uefi_keeps_its_variables(lab: Lab) -> None:
    templates = [Path("/usr/share/OVMF/OVMF_VARS_4M.fd"), Path("/usr/share/OVMF/OVMF_VARS.fd")]
    template = next((path for path in templates if path.exists()), None)
    if template is None:
        pytest.skip("the package ovmf is not installed")
    nvram = lab.root / "nvram.fd"
    shutil.copyfile(template, nvram)
    before = nvram.read_bytes()
    spec = lab.spec(type=DomainType.HVM, firmware=Firmware.UEFI, hdtype="ahci")
    spec = msgspec.structs.replace(spec, kernel=None, ramdisk=None, cmdline="", nvram=str(nvram))
    await lab.start(spec)
    await lab.see(spec, "BdsDxe")
    assert nvram.read_bytes() != before


@pytest.fixture
def bridge() -> Iterator[str]:
    if os.geteuid() != 0:
        pytest.skip("a vif on a bridge needs root")
    name = f"pyxtest{os.getpid() % 10000}"
    made = subprocess.run(["ip", "link", "add", name, "type", "bridge"], check=False, capture_output=True)
    if made.returncode:
        pytest.skip("this kernel has no bridges")
    yield name
    subprocess.run(["ip", "link", "del", name], check=True)


async def test_a_vif_on_a_bridge_comes_and_goes(lab: Lab, bridge: str) -> None:
    spec = lab.spec(vif=(Vif(mac="00:16:3e:00:00:01", bridge=bridge, rate=1_000_000),))
    domain = await lab.start(spec, paused=True)
    tap = Path("/sys/class/net") / f"vif{spec.domid}.0"
    assert (tap / "brport/bridge").resolve().name == bridge
    await domain.destroy()
    assert not tap.exists()

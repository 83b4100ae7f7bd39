"""The engine's smaller parts: choosing, disks' layers, ports, QEMU's last words, cgroups, processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyxen.api import EngineInfo
from pyxen.config.model import (
    Accelerator,
    Disk,
    DiskAccess,
    DiskFormat,
    DiskType,
    DomainConfig,
    DomainType,
    EngineChoice,
    Forward,
    Share,
    Vif,
)
from pyxen.engine.choose import choose
from pyxen.engine.descriptors import Descriptors
from pyxen.engine.fake import FakeEngine
from pyxen.engine.forwards import check_ports, describe
from pyxen.engine.layers import open_drives
from pyxen.engine.process import belongs_to, find, kill_all, last_words, marker, read_pid, spawn
from pyxen.engine.qemu.disks import check_disks
from pyxen.engine.qemu.launch import kvm_group, openable
from pyxen.engine.qemu.networks import check_networks
from pyxen.engine.qemu.slots import letter_index
from pyxen.engine.qemu.vnc import choose_display
from pyxen.engine.qemu.words import translate
from pyxen.engine.xen import XenEngine
from pyxen.errors import ConfigError, Conflict, EngineError, PyxenError, ResourceExhausted, Unsupported


class Named(FakeEngine):
    def __init__(self, name: str, reason: str = "") -> None:
        super().__init__()
        self.name = name
        self.reason = reason

    def info(self) -> EngineInfo:
        return EngineInfo(name=self.name, available=not self.reason, reason=self.reason)


def test_xen_comes_first_for_pvh_and_qemu_where_it_is_missing_or_asked_for() -> None:
    engines = [Named("xen"), Named("qemu")]
    without_kvm = [Named("xen", "no KVM"), Named("qemu")]
    assert choose(DomainConfig(name="a"), engines).name == "xen"
    assert choose(DomainConfig(name="a"), without_kvm).name == "qemu"
    assert choose(DomainConfig(name="a", engine=EngineChoice.QEMU), engines).name == "qemu"
    assert choose(DomainConfig(name="a", p9=(Share(tag="src", path="/srv"),)), engines).name == "qemu"
    assert choose(DomainConfig(name="a", gdb=True), engines).name == "qemu"
    assert choose(DomainConfig(name="a", accel=Accelerator.TCG), engines).name == "qemu"
    assert choose(DomainConfig(name="a", type=DomainType.HVM), engines).name == "qemu"
    without_qemu = [Named("xen"), Named("qemu", "not installed")]
    with pytest.raises(Unsupported, match="qemu: not installed"):
        choose(DomainConfig(name="a", type=DomainType.HVM), without_qemu)


def test_an_engine_that_was_asked_for_is_not_replaced() -> None:
    with pytest.raises(Unsupported, match=r"'a' .*xen: no KVM"):
        choose(DomainConfig(name="a", engine=EngineChoice.XEN), [Named("xen", "no KVM"), Named("qemu")])
    with pytest.raises(Unsupported, match="no engine 'xen'"):
        choose(DomainConfig(name="a", engine=EngineChoice.XEN), [Named("qemu")])
    with pytest.raises(Unsupported, match="qemu: not installed"):
        choose(DomainConfig(name="a"), [Named("qemu", "not installed")])


@pytest.mark.parametrize(("vdev", "index"), [("xvda", 0), ("hdz1", 25), ("sdaa", 26), ("vdb", 1), ("xvdba15", 52)])
def test_letters(vdev: str, index: int) -> None:
    assert letter_index(vdev) == index


def qcow2(path: Path, *options: str) -> Path:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, path, "1M"], check=True)
    return path


def test_every_layer_of_a_disk_is_opened(tmp_path: Path) -> None:
    base = tmp_path / "base.img"
    base.write_bytes(bytes(1 << 20))
    middle = qcow2(tmp_path / "middle.qcow2", "-b", "base.img", "-F", "raw")
    top = qcow2(tmp_path / "top.qcow2", "-b", str(middle), "-F", "qcow2")
    config = DomainConfig(name="x", disk=(Disk(vdev="xvda", target=str(top), format=DiskFormat.QCOW2),))
    with Descriptors() as descriptors:
        (drive,) = open_drives(config.disk, descriptors)
        fds = list(descriptors.fds)
        assert [os.readlink(f"/proc/self/fd/{fd}") for fd in fds] == [str(top), str(middle), str(base)]
        modes = [os.O_ACCMODE & int(Path(f"/proc/self/fdinfo/{fd}").read_text().split()[3], 8) for fd in fds]
        assert modes == [os.O_RDWR, os.O_RDONLY, os.O_RDONLY]
        assert descriptors.arguments[:2] == ["-add-fd", f"fd={fds[0]},set=1"]
    assert [(layer.filename, layer.format) for layer in drive.layers] == [
        ("/dev/fdset/1", "qcow2"),
        ("/dev/fdset/2", "qcow2"),
        ("/dev/fdset/3", "raw"),
    ]
    for fd in fds:
        with pytest.raises(OSError):
            os.fstat(fd)


def open_one(path: Path) -> None:
    with Descriptors() as descriptors:
        open_drives([Disk(vdev="xvda", target=str(path), format=DiskFormat.QCOW2)], descriptors)


def test_layers_that_cannot_be_followed(tmp_path: Path) -> None:
    base = tmp_path / "base.img"
    base.write_bytes(bytes(1 << 20))
    unsaid = qcow2(tmp_path / "unsaid.qcow2", "-u", "-b", str(base), "-F", "raw")
    header = bytearray(unsaid.read_bytes())
    at = header.index(0xE2792ACA.to_bytes(4, "big"))
    header[at : at + 4] = b"\x12\x34\x56\x78"
    unsaid.write_bytes(header)
    with pytest.raises(ConfigError, match="does not say what its backing file") as caught:
        open_one(unsaid)
    assert caught.value.hint is not None and "qemu-img rebase" in caught.value.hint
    loop = qcow2(tmp_path / "loop.qcow2", "-u", "-b", str(tmp_path / "pool.qcow2"), "-F", "qcow2")
    qcow2(tmp_path / "pool.qcow2", "-u", "-b", str(loop), "-F", "qcow2")
    with pytest.raises(ConfigError, match="more than 16 layers"):
        open_one(loop)
    orphan = qcow2(tmp_path / "orphan.qcow2", "-u", "-b", "gone.img", "-F", "raw")
    with pytest.raises(EngineError, match=r"disk xvda: cannot open .*gone\.img: No such file"):
        open_one(orphan)


@given(st.binary(max_size=300))
def test_damaged_headers_are_refused_or_read(tmp_path_factory: pytest.TempPathFactory, rest: bytes) -> None:
    path = tmp_path_factory.mktemp("q") / "x.qcow2"
    path.write_bytes(b"QFI\xfb" + rest)
    try:
        open_one(path)
    except (ConfigError, EngineError) as error:
        assert error.message


def test_places_that_the_buses_do_not_have() -> None:
    for vdev, hdtype in (("hde", "ide"), ("hdg", "ahci"), ("sdg", "ide")):
        config = DomainConfig(name="x", type=DomainType.HVM, hdtype=hdtype, disk=(Disk(vdev=vdev, target="/a"),))
        with pytest.raises(Unsupported, match=vdev):
            check_disks(config)
    assert check_disks(DomainConfig(name="x", disk=(Disk(vdev="hdz", target="/a"),))) == []


def test_ide_and_sata_have_no_read_only_disks() -> None:
    for vdev, devtype, fine in (
        ("hda", DiskType.DISK, False),
        ("sda", DiskType.DISK, False),
        ("xvda", DiskType.DISK, True),
        ("hdc", DiskType.CDROM, True),
    ):
        disk = Disk(vdev=vdev, target="/a", access=DiskAccess.READ, devtype=devtype)
        config = DomainConfig(name="x", type=DomainType.HVM, disk=(disk,))
        if fine:
            assert check_disks(config) == []
        else:
            with pytest.raises(Unsupported, match=f"disk {vdev}: IDE and SATA have no read-only disks"):
                check_disks(config)


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_port_in_use_is_named(protocol: str) -> None:
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind) as taken:
        taken.bind(("127.0.0.1", 0))
        if protocol == "tcp":
            taken.listen(1)
        port = taken.getsockname()[1]
        forward = Forward(host=port, guest=22, protocol=protocol)
        with pytest.raises(ResourceExhausted) as caught:
            check_ports([forward])
        assert caught.value.message == f"port {port} on 127.0.0.1 is in use (forward {port}:22)"
        assert describe(forward) == f"{protocol} 127.0.0.1:{port} -> 22"
    check_ports([forward])


def test_a_display_in_use_is_passed_over() -> None:
    first = choose_display("127.0.0.1", None)
    number = int(first.rpartition(":")[2])
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", 5900 + number))
        taken.listen(1)
        assert choose_display("127.0.0.1", None) != first
        with pytest.raises(ResourceExhausted, match=f"127.0.0.1:{number}"):
            choose_display("127.0.0.1", number)


def test_cards_are_from_a_list() -> None:
    with pytest.raises(Unsupported, match="no such network card: pc-testdev"):
        check_networks(DomainConfig(name="x", type=DomainType.HVM, vif=(Vif(model="pc-testdev"),)))
    assert check_networks(DomainConfig(name="x", vif=(Vif(model="e1000"), Vif(rate=1000)))) == [
        "vif 0: a pvh domain has virtio, not e1000",
        "vif 1: rate is not kept on a user-mode network",
    ]


@pytest.mark.parametrize(
    ("words", "kind", "part"),
    [
        (
            "qemu-system-x86_64: cannot set up guest memory 'pc.ram': Cannot allocate memory",
            ResourceExhausted,
            "memory",
        ),
        (
            'qemu-system-x86_64: -device ide-hd: Failed to get "write" lock\n'
            "Is another process using the image [/dev/fdset/1]?",
            Conflict,
            "in use by another process",
        ),
        ("qemu-system-x86_64: -netdev u: Could not set up host forwarding rule 'tcp::1-:2'", ResourceExhausted, "port"),
        ("qemu-system-x86_64: -device foo: 'foo' is not a valid device model name", Unsupported, "no such device"),
        ("qemu-system-x86_64: warning: old\nqemu-system-x86_64: -m size=1: strange", EngineError, "QEMU says: strange"),
        ("", EngineError, "without a word"),
    ],
)
def test_last_words_become_errors(words: str, kind: type[PyxenError], part: str) -> None:
    error = translate("web", words)
    assert type(error) is kind
    assert error.message.startswith("cannot start 'web'") and part in error.message


def test_a_process_is_known_by_its_folder_alone(tmp_path: Path) -> None:
    """Somebody who follows the log of domain 7 is not domain 7, and domain 77 is another one."""
    directory = tmp_path / "7"
    directory.mkdir()
    (directory / "console.log").touch()
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    own = spawn([*sleep, marker(directory)], stderr=tmp_path / "err")
    others = [
        spawn([*sleep, str(directory / "events")], stderr=tmp_path / "err"),
        spawn([*sleep, marker(tmp_path / "77")], stderr=tmp_path / "err"),
        spawn([*sleep, marker(directory) + ".old"], stderr=tmp_path / "err"),
    ]
    try:
        assert find(directory) == [own]
        (directory / "pid").write_text(f"{own}\n")
        assert read_pid(directory) == own
        (directory / "pid").write_text(f"{others[0]}\n")
        assert read_pid(directory) is None
        kill_all(directory)
        assert find(directory) == [] and not belongs_to(own, directory)
        with pytest.raises(ChildProcessError):
            os.waitpid(own, os.WNOHANG)
    finally:
        for pid in others:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


@pytest.mark.parametrize("text", ["", "x\n", "-1", "99999999999999999999"])
def test_a_pid_file_may_hold_anything(tmp_path: Path, text: str) -> None:
    (tmp_path / "pid").write_text(text)
    assert read_pid(tmp_path) is None


def test_a_child_gets_the_descriptors_it_is_meant_to_get(tmp_path: Path) -> None:
    leaked, _write = os.pipe()
    os.set_inheritable(leaked, True)
    passed = os.open(tmp_path, os.O_RDONLY)
    pid = spawn(["/bin/sh", "-c", "ls /proc/$$/fd; cat; ps -o sid= -p $$"], stderr=tmp_path / "err", pass_fds=[passed])
    assert os.waitpid(pid, 0)[1] == 0
    *fds, session = (tmp_path / "err").read_text().split()
    assert str(passed) in fds and str(leaked) not in fds
    assert int(session) == pid
    assert not os.get_inheritable(passed)
    for fd in (leaked, _write, passed):
        os.close(fd)


def test_last_words_are_the_last(tmp_path: Path) -> None:
    path = tmp_path / "stderr"
    assert last_words(path) == ""
    path.write_text("".join(f"line {number}\n" for number in range(2000)))
    assert last_words(path, 2) == "line 1998\nline 1999"


def test_a_kernel_has_a_name_that_its_domains_user_can_open(tmp_path: Path) -> None:
    """pytest's folders are closed to others."""
    path, copy = tmp_path / "vmlinux", tmp_path / "kernel"
    path.write_bytes(b"kernel")
    uid = os.geteuid()
    with Descriptors() as descriptors:
        assert openable(None, uid, copy, descriptors) is None
        assert openable(str(path), None, copy, descriptors) == str(path)
        path.chmod(0o644)
        name = openable(str(path), uid, copy, descriptors)
        assert name == f"/proc/self/fd/{descriptors.fds[0]}"
        assert Path(name).read_bytes() == b"kernel" and not copy.exists()
        path.chmod(0o640)
        assert openable(str(path), uid, copy, descriptors) == "kernel"
        assert copy.read_bytes() == b"kernel" and copy.stat().st_mode & 0o777 == 0o400


@pytest.mark.parametrize(
    ("mode", "gid", "group"), [(0o666, 0, 0), (0o660, 108, 108), (0o660, 0, None), (0o600, 108, None)]
)
def test_who_may_use_kvm(tmp_path: Path, mode: int, gid: int, group: int | None) -> None:
    device = tmp_path / "kvm"
    device.touch()
    device.chmod(mode)
    if os.geteuid() != 0 and gid:
        pytest.skip("only root gives files away")
    if os.geteuid() == 0:
        os.chown(device, 0, gid)
    assert kvm_group(device) == group


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"type": DomainType.HVM}, "runs pvh domains"),
        ({"maxvcpus": 65}, "at most 64 VCPUs"),
        ({"kernel": None}, "needs a kernel"),
    ],
)
def test_the_xen_engine_says_what_it_lacks(tmp_path: Path, keys: dict[str, object], words: str) -> None:
    with pytest.raises((Unsupported, ConfigError), match=words):
        XenEngine(tmp_path, None).check(DomainConfig(**{"name": "x", "kernel": "/k", **keys}))  # type: ignore[arg-type]


def test_the_xen_engine_takes_disks_and_networks(tmp_path: Path) -> None:
    disks = (Disk(vdev="xvda", target="/a", format=DiskFormat.QCOW2), Disk(vdev="xvdb", devtype=DiskType.CDROM))
    config = DomainConfig(name="x", kernel="/k", disk=disks, vif=(Vif(),))
    (warning,) = XenEngine(tmp_path, None).check(config)  # type: ignore[arg-type]
    assert "xvdb: a pvh domain has no empty CD-ROM drive" in warning

"""The images boot in QEMU alone, without any of xend."""

from __future__ import annotations

import base64
import io
import json
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest
from elftools.elf.elffile import ELFFile

from pyxen import api
from pyxen.image.kernel import unpack
from pyxen.image.store import ImageStore
from tests.guest.host import CACHE, PROMPT, built_image

# What goes wrong in a guest shows as one of these.
ALARMS = (b"Call Trace", b"WARNING:", b"BUG:", b"Kernel panic", b"modprobe:", b"not found")


class Machine:
    """QEMU with an image, its serial console in ``console``, and QMP."""

    def __init__(self, image: api.Image, cmdline: str = "", disk: Path | None = None, memory: int = 256) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="pyxen-", dir="/tmp"))
        kernel = unpack(Path(image.kernel), CACHE / "kernels")
        assert image.ramdisk is not None
        devices = ["-netdev", "user,id=net0", "-device", "virtio-net-pci,netdev=net0,romfile="]
        devices += ["-device", "virtio-balloon-pci", "-device", "virtio-rng-pci"]
        if disk:
            devices += ["-drive", f"if=none,id=disk0,file={disk}", "-device", "virtio-blk-pci,drive=disk0"]
        self.log = io.BytesIO()
        self.console: pexpect.spawn[bytes] = pexpect.spawn(
            "qemu-system-x86_64",
            [
                *("-M", "pc", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
                *("-accel", "tcg", "-cpu", "max", "-m", str(memory), "-bios", "/usr/share/qemu/qboot.rom"),
                *("-kernel", str(kernel.vmlinux), "-initrd", image.ramdisk),
                *("-append", f"console=ttyS0 {image.cmdline} {cmdline}"),
                *(
                    "-chardev",
                    "stdio,id=tty0,signal=off",
                    "-serial",
                    "chardev:tty0",
                    "-qmp",
                    f"unix:{self.folder}/qmp,server=on,wait=off",
                    *devices,
                ),
            ],
            timeout=120,
            logfile=self.log,
            echo=False,
        )

    def press_power_button(self) -> None:
        with socket.socket(socket.AF_UNIX) as qmp:
            qmp.connect(f"{self.folder}/qmp")
            with qmp.makefile("rw") as lines:
                lines.readline()
                for command in ("qmp_capabilities", "system_powerdown"):
                    lines.write(json.dumps({"execute": command}) + "\n")
                    lines.flush()
                    while "return" not in json.loads(lines.readline()):
                        pass

    def type(self, line: str) -> None:
        self.console.sendline(line)

    def powers_off(self) -> None:
        """QEMU ends by itself."""
        self.console.expect(pexpect.EOF)
        self.console.wait()
        assert self.console.exitstatus == 0

    def close(self) -> None:
        self.console.close(force=True)
        shutil.rmtree(self.folder)


@pytest.fixture
def machines() -> Iterator[list[Machine]]:
    started: list[Machine] = []
    yield started
    for machine in started:
        machine.close()


@pytest.fixture(scope="module")
def tiny_image(tiny: Path) -> api.Image:
    return ImageStore(CACHE / "images", CACHE / "kernels").get("tiny")


def start(machines: list[Machine], image: api.Image, cmdline: str = "", **options: object) -> Machine:
    machine = Machine(image, cmdline, **options)  # type: ignore[arg-type]
    machines.append(machine)
    return machine


def test_kernel_agrees_with_pyelftools(tiny_image: api.Image) -> None:
    found = unpack(Path(tiny_image.kernel), CACHE / "kernels")
    assert found.release == tiny_image.kernel_release
    with found.vmlinux.open("rb") as file:
        notes = [
            note
            for segment in ELFFile(file).iter_segments("PT_NOTE")
            for note in segment.iter_notes()  # type: ignore[attr-defined]
        ]
    entries = [note.n_descdata for note in notes if note.n_name == "Xen" and note.n_type in (18, "NT_GNU_PHYS32_ENTRY")]
    assert [int.from_bytes(entry, "little") for entry in entries] == [found.pvh_entry]


def test_shell(machines: list[Machine], tiny_image: api.Image) -> None:
    machine = start(machines, tiny_image, "hostname=ginger")
    machine.console.expect("tiny: ready")
    machine.console.expect(PROMPT)
    assert machine.console.after == b"ginger:~# "
    machine.type("uname -a")
    machine.console.expect(f"Linux ginger {tiny_image.kernel_release} ")
    machine.console.expect(PROMPT)
    machine.type("lsmod")
    machine.console.expect("Module .*" + PROMPT)
    loaded = set(machine.console.after.decode().split())
    assert loaded >= {"button", "evdev", "virtio_balloon", "virtio_net", "virtio_pci", "virtio_rng"}
    assert "virtio_blk" not in loaded, "there is no disk"
    machine.type("echo a''sleep; sleep 1000")
    machine.console.expect("asleep")  # what is typed while the shell still edits its line is no signal
    machine.console.sendintr()
    machine.console.expect(PROMPT)
    machine.type("while ! ip -4 address show eth0 | grep inet; do usleep 100000; done")
    machine.console.expect("inet 10.0.2.15")
    machine.console.expect(PROMPT)
    machine.type("exit")
    machine.console.expect(PROMPT)
    machine.type("poweroff")
    machine.powers_off()
    output = machine.log.getvalue()
    assert not [alarm for alarm in ALARMS if alarm in output], output.decode(errors="replace")
    assert b"\x1b[6n" not in output


def test_power_button(machines: list[Machine], tiny_image: api.Image) -> None:
    machine = start(machines, tiny_image)
    machine.console.expect("tiny: ready")
    machine.press_power_button()
    machine.powers_off()


def test_login(machines: list[Machine], tiny_image: api.Image) -> None:
    machine = start(machines, tiny_image, "tiny.login=1")
    machine.console.expect("tiny login: ")
    machine.type("root")
    machine.console.expect("Password: ")
    machine.type("wrong")
    machine.console.expect("Login incorrect")
    machine.console.expect("tiny login: ")
    machine.type("root")
    machine.console.expect("Password: ")
    machine.type("tiny")
    machine.console.expect(PROMPT)
    machine.type("poweroff")
    machine.powers_off()


def test_run(machines: list[Machine], tiny_image: api.Image) -> None:
    script = base64.b64encode(b"echo $((6 * 7)) is the answer; exit 3\n").decode()
    machine = start(machines, tiny_image, f"tiny.run={script}")
    machine.console.expect("42 is the answer")
    machine.console.expect("tiny: the script ended with status 3")
    machine.powers_off()


@pytest.mark.parametrize("command", ["reboot", "halt"])
def test_stopping_in_other_ways(machines: list[Machine], tiny_image: api.Image, command: str) -> None:
    machine = start(machines, tiny_image)
    machine.console.expect(PROMPT)
    machine.type(command)
    if command == "reboot":
        machine.powers_off()  # so -no-reboot has it
    else:
        machine.console.expect("reboot: System halted")


def test_debian(machines: list[Machine], tiny: Path) -> None:
    store = ImageStore(CACHE / "images", CACHE / "kernels")
    image = built_image("debian")
    folder = Path(tempfile.mkdtemp(prefix="pyxen-", dir="/tmp"))
    try:
        disk = folder / "disk.qcow2"
        store.overlay(image, disk)
        machine = start(machines, image, disk=disk, memory=512)
        machine.console.expect("debian login: ")
        machine.type("root")
        machine.console.expect("Password: ")
        machine.type("debian")
        machine.console.expect("root@debian:~# ")
        machine.type("findmnt -no FSTYPE,LABEL /; systemctl is-system-running --wait; systemctl --failed --no-legend")
        machine.console.expect(r"ext4 +root")
        machine.console.expect("running")
        machine.console.expect("root@debian:~# ")
        machine.type("modprobe overlay && ls /etc/ssh/*_key; ip -4 -brief address")
        machine.console.expect("/etc/ssh/ssh_host_ed25519_key")
        machine.console.expect("10.0.2.15")
        machine.press_power_button()
        machine.powers_off()
        subprocess.run(["qemu-img", "check", "-q", disk], check=True)
    finally:
        shutil.rmtree(folder)

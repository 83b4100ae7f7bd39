"""A system that is installed on a disk, as UEFI starts it: shim, GRUB and a kernel, each signed by Debian's makers."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.guest.host import Host, type_line
from tests.guest.packages import package
from tests.guest.test_hvm import OVMF

pytestmark = [
    pytest.mark.skipif("PYXEN_TEST_HOST" in os.environ, reason="there is no package to be had in there"),
    pytest.mark.skipif(not OVMF.exists(), reason="the UEFI firmware (package ovmf) is not installed"),
]

START, SIZE, SECTOR = 1 << 20, 96 << 20, 512
CONFIG = """\
serial --unit=0
terminal_output serial
linux /vmlinuz console=ttyS0 quiet
initrd /ramdisk
boot
"""


def install(disk: Path, kernel: Path, ramdisk: Path) -> None:
    """Make a disk with one EFI system partition (FAT), with what UEFI starts from a disk that it doesn't know."""
    entry = bytes([0x80, 0, 2, 0, 0xEF, 0xFF, 0xFF, 0xFF])
    entry += (START // SECTOR).to_bytes(4, "little") + (SIZE // SECTOR).to_bytes(4, "little")
    with disk.open("wb") as file:
        file.write(bytes(446) + entry + bytes(48) + b"\x55\xaa")
        file.truncate(START + SIZE)
    config = disk.with_name("grub.cfg")
    config.write_text(CONFIG)
    signed = package("grub-efi-amd64-signed") / "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed"
    for command in (
        ["mformat", "-F", "::"],
        ["mmd", "::/EFI", "::/EFI/BOOT", "::/EFI/debian"],
        ["mcopy", str(package("shim-signed") / "usr/lib/shim/shimx64.efi.signed"), "::/EFI/BOOT/BOOTX64.EFI"],
        ["mcopy", str(signed), "::/EFI/BOOT/grubx64.efi"],
        ["mcopy", str(config), "::/EFI/debian/grub.cfg"],
        ["mcopy", str(kernel), "::/vmlinuz"],
        ["mcopy", str(ramdisk), "::/ramdisk"],
    ):
        mtools = package("mtools") / "usr/bin" / command[0]
        subprocess.run([mtools, "-i", f"{disk}@@{START}", *command[1:]], check=True)


@pytest.mark.parametrize("secure", [False, True], ids=["not_secure", "secure"])
def test_a_system_boots_from_its_disk(shared: Host, tiny: Path, secure: bool) -> None:
    (kernel,) = tiny.glob("*/vmlinuz")
    disk = shared.root / "installed.img"
    install(disk, kernel, kernel.with_name("ramdisk"))
    name, firmware = ("safe", "secure_boot=1") if secure else ("plain", "firmware=uefi")
    words = ["type=hvm", f"name={name}", "memory=512", f"disk=file:{disk},xvda,w", "boot=c"]
    shared.xm("create", *words, firmware)
    console = shared.ready(name, timeout=120)
    assert type_line(console, "dmesg | grep -c 'secureboot: Secure boot enabled'") == str(int(secure))
    assert type_line(console, "dmesg | grep -c 'locked down from EFI Secure Boot'") == str(int(secure))
    assert type_line(console, "test -d /sys/firmware/efi && echo by UEFI") == "by UEFI"
    console.close()
    shared.xm("reboot", "-w", name)
    shared.ready(name, timeout=120).close()
    shared.xm("destroy", name)
    if not secure:
        refused = shared.try_run("xm", "create", *words, "secure_boot=1")
        assert refused.returncode == 1 and "from before have no keys" in refused.stderr

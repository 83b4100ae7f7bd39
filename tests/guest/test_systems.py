"""Systems as they come from their makers, on HVM domains: what each shows on its screen or says on its serial port."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess

import pexpect
import pytest
from elftools.elf.elffile import ELFFile

from pyxen.image import debs, ramdisk, tiny
from tests.guest.host import PROMPT, Host, type_line, wait_for
from tests.guest.packages import PACKAGES, package
from tests.guest.png import colours

pytestmark = pytest.mark.skipif("PYXEN_TEST_HOST" in os.environ, reason="there is no package to be had in there")
BLUE, BLACK = (0, 0, 0xA8), (0, 0, 0)


def screen(host: Host, name: str) -> dict[tuple[int, int, int], float]:
    """What part of a screen each colour has."""
    picture = host.root / "screen.png"
    host.xm("screendump", name, str(picture))
    found = colours(picture.read_bytes())
    return {colour: count / found.total() for colour, count in found.items()}


def test_grub_and_the_screen(shared: Host) -> None:
    cd = package("grub-rescue-pc") / "usr/lib/grub-rescue/grub-rescue-cdrom.iso"
    shared.xm("create", "type=hvm", "name=grub", "memory=64", f"disk=file:{cd},hdc:cdrom,r", "boot=d")
    console = shared.console("grub", timeout=90)
    console.expect("FreeBSD")  # its menu, of what this disc might be good for
    found = screen(shared, "grub")
    assert found[BLACK] > 0.5 and len(found) > 1, found
    console.send("c")
    console.expect("grub>")
    console.send("lsmmap\r")
    console.expect("base_addr")
    console.close()
    shared.xm("destroy", "grub")


def test_ipxe_has_a_card_and_gets_an_address(shared: Host) -> None:
    cd = package("ipxe") / "usr/lib/ipxe/ipxe.iso"
    words = ["type=hvm", "name=ipxe", "memory=64", f"disk=file:{cd},hdc:cdrom,r", "boot=d", "vif=model=e1000"]
    shared.xm("create", *words)
    console = shared.console("ipxe", timeout=90)
    console.expect("iPXE 1.0.0")
    console.expect(r"net0: 10\.0\.2\.15")
    console.close()
    shared.xm("destroy", "ipxe")


@pytest.mark.parametrize("firmware", ["bios", "uefi"])
def test_memtest_runs_on_both_firmwares(shared: Host, firmware: str) -> None:
    cd = package("memtest86+") / "usr/lib/memtest86+/memtest86+x64.iso"
    words = ["type=hvm", "name=memtest", "memory=256", f"firmware={firmware}", f"disk=file:{cd},hdc:cdrom,r", "boot=d"]
    shared.xm("create", *words)
    wait_for(lambda: _is_blue(screen(shared, "memtest")), "its blue screen", timeout=120)
    shared.xm("destroy", "memtest")


def _is_blue(found: dict[tuple[int, int, int], float]) -> bool:
    return any(share > 0.15 and blue > 100 and red < 60 and green < 60 for (red, green, blue), share in found.items())


@pytest.mark.parametrize("flavour", ["686", "686-pae"])
def test_a_kernel_of_32_bits(shared: Host, flavour: str) -> None:
    lists = debs.Lists("i386", PACKAGES / "lists-i386")
    source = debs.find_package(f"linux-image-{flavour}", lists)
    root = package(source.package, lists)
    kernel = debs.fetch(debs.KernelSource("", release=source.package.removeprefix("linux-image-")), root, root=root)
    busybox = ramdisk.without_cursor_query((package("busybox-static", lists) / "bin" / "busybox").read_bytes())
    disk = shared.root / "ramdisk"
    disk.write_bytes(tiny.make_ramdisk(kernel.modules, busybox=busybox))
    words = ["type=hvm", "name=old", "memory=256", "extra=quiet", f"kernel={kernel.vmlinuz}", f"ramdisk={disk}"]
    shared.xm("create", *words)
    console = shared.ready("old", timeout=120)
    assert type_line(console, "uname -m") == "i686"
    # Only page tables with PAE have a bit for it.
    assert type_line(console, "dmesg | grep -c 'NX (Execute Disable) protection: active'") == str(int("pae" in flavour))
    _sleeps_and_wakes(shared, console)
    shared.xm("trigger", "old", "power")
    console.expect(r"Domain old has ended \(poweroff\)")
    console.close()


def _sleeps_and_wakes(host: Host, console: pexpect.spawn[str]) -> None:
    console.sendline("echo mem >/sys/power/state; echo awake")
    wait_for(lambda: host.domains()["old"]["power_state"] == "suspended", "it sleeps in S3")
    host.xm("trigger", "old", "s3resume")
    console.expect(r"\nawake")
    console.expect(PROMPT)
    assert host.domains()["old"]["power_state"] == "running"


def test_secure_boot_refuses_what_nobody_has_signed(shared: Host) -> None:
    cd = package("memtest86+") / "usr/lib/memtest86+/memtest86+x64.iso"
    words = ["type=hvm", "name=safe", "memory=256", "secure_boot=1", f"disk=file:{cd},hdc:cdrom,r", "boot=d"]
    shared.xm("create", *words)
    console = shared.console("safe", timeout=120)
    console.expect("BdsDxe: failed to load .*: (Access Denied|Security Violation)")
    console.close()
    (variables,) = (shared.root / "state" / "nvram").glob("safe*")
    assert b"Microsoft Corporation UEFI CA" in variables.read_bytes()
    shared.xm("destroy", "safe")


@pytest.mark.skipif(shutil.which("swtpm") is None, reason="swtpm is not installed")
def test_a_profile_for_windows_has_what_it_asks_for(shared: Host) -> None:
    """As far as that goes without Windows: a Linux sees the TPM, whose state is kept, and the empty drive is there."""
    words = ["profile=windows", "name=win", "memory=300", "image=tiny", "firmware=bios"]
    shared.xm("create", *words, "extra=quiet")
    console = shared.ready("win", timeout=120)
    assert type_line(console, "cat /sys/class/tpm/tpm0/tpm_version_major") == "2"
    assert shared.domains()["win"]["vnc"] is not None
    disks = json.loads(shared.xm("block-list", "win", "--format", "json"))
    assert "hdd" in json.dumps(disks)
    state = shared.root / "state" / "tpm" / "win.tpm"
    assert state.stat().st_size > 0
    console.close()
    shared.xm("destroy", "win")
    assert state.exists()


def test_a_core_has_the_kernels_memory_and_registers(shared: Host) -> None:
    """By physical addresses, as crash looks for it: a symbol of the kernel, which lies where it was linked to."""
    shared.xm("create", "image=tiny", "name=web", "engine=qemu", "memory=128")
    console = shared.ready("web", timeout=90)
    address = int(type_line(console, "grep ' linux_banner$' /proc/kallsyms").split()[0], 16)
    banner = type_line(console, "cat /proc/version")
    core = shared.root / "core"
    shared.xm("dump-core", "web", str(core))
    physical = address - 0xFFFF_FFFF_8000_0000
    with core.open("rb") as file:
        segment = next(
            each
            for each in ELFFile(file).iter_segments("PT_LOAD")
            if each["p_paddr"] <= physical < each["p_paddr"] + each["p_filesz"]
        )
        file.seek(segment["p_offset"] + physical - segment["p_paddr"])
        assert file.read(len(banner)).decode() == banner
    if shutil.which("gdb"):
        words = ["gdb", "-batch", "-nx", "-core", str(core), "-ex", "info registers rip"]
        said = subprocess.run(words, capture_output=True, text=True, check=False).stdout
        assert re.search(r"^rip +0xffffffff", said, re.MULTILINE), said
    core.unlink()
    console.close()
    shared.xm("destroy", "web")


def test_a_domain_without_a_screen(shared: Host) -> None:
    shared.xm("create", "image=tiny", "name=web", "memory=128")
    refused = shared.try_run("xm", "screendump", "web")
    assert (refused.returncode, refused.stderr.splitlines()[0]) == (1, "Error: 'web' has no screen")
    shared.xm("destroy", "web")

"""HVM domains: firmware, boot order, disks on every bus, VNC. The guests are 512 bytes of machine code each."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import pytest

from tests.guest.host import Host, type_line, wait_for

OVMF = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
SECTOR = 2048
"""Of a CD; a disk's have 512 bytes."""


@pytest.fixture(scope="module")
def shared(shared: Host) -> Host:
    """With a disk and a CD that boot."""
    (shared.root / "disk.img").write_bytes(boot_sector("the disk has booted").ljust(1 << 20, b"\0"))
    (shared.root / "cd.iso").write_bytes(boot_cd(boot_sector("the CD has booted")))
    return shared


def boot_sector(line: str) -> bytes:
    """A master boot record that prints ``line`` on the first serial port and powers off."""
    code = bytes.fromhex(
        "fa fc"  #       cli; cld
        "31c0 8ed8"  #   xor  ax, ax; mov ds, ax
        "be 297c"  #     mov  si, 0x7c29        the line, behind the code
        "ac 84c0"  #     lodsb; test al, al     next:
        "74 11"  #       jz   off
        "88c4"  #        mov  ah, al
        "ba fd03"  #     mov  dx, 0x3fd
        "ec a820"  #     in   al, dx; test al, 0x20   wait: until it can take a byte
        "74 fb"  #       jz   wait
        "88e0"  #        mov  al, ah
        "b2 f8 ee"  #    mov  dl, 0xf8; out dx, al
        "eb ea"  #       jmp  next
        "ba 0406"  #     mov  dx, 0x604         off: ACPI's PM1a control, where QEMU's firmwares have it
        "b8 0020 ef"  #  mov  ax, 0x2000; out dx, ax
        "f4 eb fd"  #    hlt; jmp -3
    )
    assert len(code) == 0x29
    return (code + line.encode() + b"\r\n\0").ljust(510, b"\0") + b"\x55\xaa"


def boot_cd(sector: bytes) -> bytes:
    """An ISO 9660 image with nothing but an El Torito boot record (version 1.0): no emulation, one sector."""
    validation = b"\1".ljust(0x1E, b"\0") + b"\x55\xaa"
    words = (int.from_bytes(validation[at : at + 2], "little") for at in range(0, 32, 2))
    checksum = (-sum(words) & 0xFFFF).to_bytes(2, "little")
    validation = validation[:0x1C] + checksum + validation[0x1E:]
    entry = b"\x88\0\0\0\0\0" + (1).to_bytes(2, "little") + (20).to_bytes(4, "little")
    sectors = {
        16: b"\1CD001\1",
        17: b"\0CD001\1EL TORITO SPECIFICATION".ljust(0x47, b"\0") + (19).to_bytes(4, "little"),
        18: b"\xffCD001\1",
        19: validation + entry,
        20: sector,
    }
    return b"".join(sectors.get(number, b"").ljust(SECTOR, b"\0") for number in range(21))


def boot_and_read(host: Host, *words: str) -> str:
    """Everything that a domain prints until it powers off."""
    host.xm("create", "-p", "type=hvm", "name=box", "memory=64", *words)
    console = host.console("box")
    console.expect("Connected to box")  # it may be gone in no time
    host.xm("unpause", "box")
    console.expect(r"Domain box has ended \(poweroff\)")
    wait_for(lambda: host.domains() == {}, "the domain is gone")
    return str(console.before)


@pytest.mark.parametrize(
    "words",
    [
        ["disk=file:disk.img,hda,w"],
        ["disk=file:disk.img,sda,w"],
        ["disk=file:disk.img,hda,w", "hdtype=ahci"],
        ["disk=file:disk.img,xvda,w"],
        ["disk=file:disk.img,xvda,w", "hdtype=ahci"],
        ["disk=file:disk.img,hda,w", 'usbdevice=["tablet"]', "vga=cirrus", "vif="],
    ],
    ids=["IDE", "AHCI", "q35", "virtio", "virtio in a port", "with much around it"],
)
def test_a_disk_boots_on_every_bus(shared: Host, words: list[str]) -> None:
    assert "the disk has booted" in boot_and_read(shared, *words)


@pytest.mark.parametrize(("boot", "first"), [("dc", "the CD"), ("cd", "the disk")])
def test_the_boot_order_decides(shared: Host, boot: str, first: str) -> None:
    disks = 'disk=["file:disk.img,hda,w", "file:cd.iso,hdc:cdrom,r"]'
    assert f"{first} has booted" in boot_and_read(shared, disks, f"boot={boot}")


def test_with_nothing_to_boot_the_firmware_says_so_on_the_console(shared: Host) -> None:
    done = shared.try_run("xm", "create", "type=hvm", "name=box", "memory=64")
    assert done.returncode == 0
    warning = "there is nothing to boot from: no disk, kernel or image, and no n in boot"
    assert done.stderr.splitlines() == [f"Warning: {warning}"]
    console = shared.console("box")
    console.expect("No bootable device")
    console.close()
    shared.xm("destroy", "box")


def test_a_kernel_boots_behind_a_bios(shared: Host, tiny: Path) -> None:
    (kernel,) = tiny.glob("*/vmlinuz")
    ramdisk = kernel.with_name("ramdisk")
    words = [f"kernel={kernel}", f"ramdisk={ramdisk}", "extra=quiet"]
    shared.xm("create", "type=hvm", "name=box", "memory=192", *words)
    console = shared.ready("box")
    assert "SeaBIOS" in str(console.before)
    assert type_line(console, "cat /sys/class/dmi/id/product_name") == "Standard PC (i440FX + PIIX, 1996)"
    console.close()
    shared.xm("shutdown", "-w", "box")
    assert shared.domains() == {}


def test_vnc_shows_the_domains_screen(shared: Host) -> None:
    shared.xm("create", "type=hvm", "name=box", "memory=64", "vnc=1", 'usbdevice=["tablet"]')
    address, _, display = shared.domains()["box"]["vnc"].partition(":")
    assert address == "127.0.0.1"
    # RFC 6143: versions, security types (1: none), the choice, its result; then a shared session's screen and its name.
    with socket.create_connection((address, 5900 + int(display)), timeout=30) as rfb:
        assert receive(rfb, 12) == b"RFB 003.008\n"
        rfb.sendall(b"RFB 003.008\n")
        assert receive(rfb, 2) == b"\x01\x01"
        rfb.sendall(b"\x01")
        assert receive(rfb, 4) == bytes(4)
        rfb.sendall(b"\x01")
        screen = receive(rfb, 24)
        width, height = int.from_bytes(screen[0:2], "big"), int.from_bytes(screen[2:4], "big")
        assert width >= 640 and height >= 400
        assert receive(rfb, int.from_bytes(screen[20:24], "big")) == b"QEMU (box)"
    shared.xm("destroy", "box")


def receive(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = connection.recv(count - len(data))
        assert more, f"closed after {data!r}"
        data += more
    return data


@pytest.mark.skipif(not OVMF.exists(), reason="the UEFI firmware (package ovmf) is not installed")
def test_uefi_keeps_its_variables_for_the_domain(shared: Host) -> None:
    variables = shared.root / "state" / "nvram"
    shutil.rmtree(variables, ignore_errors=True)
    create = ["create", "-p", "type=hvm", "firmware=uefi", "name=box", "memory=128"]
    shared.xm(*create, "disk=file:cd.iso,hdc:cdrom,r")
    (own,) = variables.iterdir()
    fresh = own.read_bytes()
    assert variables.stat().st_mode & 0o077 == 0
    console = shared.console("box", timeout=120)
    shared.xm("unpause", "box")
    console.expect("BdsDxe: ")
    console.close()
    wait_for(lambda: own.read_bytes() != fresh, "the firmware has written a variable")
    shared.xm("destroy", "box")
    written = own.read_bytes()
    shared.xm(*create, "disk=file:cd.iso,hdc:cdrom,r")
    shared.xm("rename", "box", "case")
    (renamed,) = variables.iterdir()
    assert renamed.name == "case.fd" and renamed.read_bytes() == written
    shared.xm("destroy", "case")

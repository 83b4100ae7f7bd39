"""USB devices of the host for real: a test host with a kernel that knows USB, whose stick and tablet go to a domain."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyxen.image import debs, ramdisk, tiny
from tests.guest.packages import package
from tests.guest.test_usb import MODULES
from tests.testhost import image, run
from tests.testhost.test_passthrough import PRELUDE, programs

_SCRIPT = (
    PRELUDE
    + r"""
xend start
xm usb-list-assignable-devices
set -- create type=hvm kernel=/vmlinuz ramdisk=/ramdisk cmdline=quiet memory=192 vga=none
xm "$@" name=inner usbdev=host:46f4:0001
try said '~# '
xm usb-list inner
xm usb-list-assignable-devices
guest 'for m in usb_storage sd_mod; do modprobe $m; done; echo modules-$((1 + 1))' modules-2
guest 'until [ -e /dev/sda ]; do sleep 1; done; head -n 1 /dev/sda' 'on the host.s stick'
if xm "$@" name=two usbdev=host:46f4:0001; then fail "it was given away twice"; fi
if xm save inner /saved; then fail "it was saved"; fi
xm usb-attach inner host:0627:0001
guest 'until cat /sys/bus/usb/devices/*/product | grep -q Tablet; do sleep 1; done; echo tablet-$((1 + 1))' tablet-2
kill -9 $(cat /run/xend/xend.pid)
sleep 1
xend start
xm usb-list inner
xm usb-detach inner 0
guest 'while [ -e /dev/sda ]; do sleep 1; done; echo gone-$((1 + 1))' gone-2
xm usb-list inner
xm usb-list-assignable-devices
xm destroy inner
"""
)


@pytest.fixture
def generic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """The test host's kernel is one that knows USB; returns the same for a domain in it, and modules for itself."""
    source = debs.find_package("linux-image-amd64")
    release = source.package.removeprefix("linux-image-")
    kernel = debs.fetch(debs.KernelSource("", release=release), tmp_path, root=package(source.package))
    own = image.BUILD / "usb"
    own.mkdir(parents=True, exist_ok=True)
    if not (own / "code").exists():
        (own / "code").symlink_to(image.BUILD / "code")
    monkeypatch.setattr(image, "BUILD", own)
    monkeypatch.setattr(image, "kernel", lambda: kernel)
    monkeypatch.setattr(tiny, "MODULES", (*tiny.MODULES, *MODULES))
    ramdisk.busybox()
    files = {"/vmlinuz": kernel.vmlinuz, "/ramdisk": tmp_path / "ramdisk"}
    files["/ramdisk"].write_bytes(tiny.make_ramdisk(kernel.modules))
    for place, module in enumerate(kernel.modules.closure(["xhci_pci"])):
        path = tmp_path / module.name
        path.write_bytes(module.data)
        files[f"/modules/{place:02d}-{module.name}"] = path
    return files


def test_usb_devices_of_the_host(generic: dict[str, Path], tmp_path: Path) -> None:
    stick = tmp_path / "stick.img"
    stick.write_bytes(b"on the host's stick\n".ljust(1 << 20, b"\0"))
    devices = (
        *("-device", "qemu-xhci,id=usb"),
        *("-drive", f"if=none,id=stick,format=raw,file={stick}", "-device", "usb-storage,bus=usb.0,drive=stick"),
        *("-device", "usb-tablet,bus=usb.0"),
    )
    done = run(["sh", "-c", _SCRIPT], files={**generic, **programs()}, iommu=devices)
    output = done.output.replace("\r", "")
    assert done.status == 0, f"{output}\n{done.console}"
    header, free = "Bus Addr ID        Name\n", "  1    2 0627:0001 QEMU QEMU USB Tablet\n"
    for said in (
        f"{header}{free}  2    2 46f4:0001 QEMU QEMU USB HARDDRIVE\nStarted domain inner",
        f"0   attached  hostbus=2,hostaddr=2\n{header}{free}guest: modules-2\n",
        "Error: USB device 2.2 (46f4:0001 QEMU QEMU USB HARDDRIVE) is in use by domain 'inner'\n",
        "Error: 'inner' has a USB device of the host, which would be in another state when it goes on",
        "0   attached  hostbus=2,hostaddr=2\n1   attached  hostbus=1,hostaddr=2\n",
        f"guest: gone-2\nIdx State     Device\n1   attached  hostbus=1,hostaddr=2\n{header}  2    2 46f4:0001 ",
    ):
        assert said in output, f"{said}\n{output}"

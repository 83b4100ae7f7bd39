"""What spans several keys."""

from __future__ import annotations

from typing import Any

import pytest

from pyxen.config.check import check
from pyxen.config.model import Disk, DiskAccess, DiskFormat, DiskType, DomainConfig, DomainType, Firmware, Forward, Vif
from pyxen.errors import ConfigError

HVM = DomainType.HVM
CD = DiskType.CDROM
R = DiskAccess.READ


def config(**fields: Any) -> DomainConfig:
    return DomainConfig(**({"name": "x", "image": "tiny"} | fields))


@pytest.mark.parametrize(
    ("fields", "key", "message"),
    [
        ({"name": "Domain-0"}, "name", "the host's own"),
        ({"uuid": "00000000-0000-0000-0000-000000000000"}, "uuid", "Domain-0's"),
        ({"memory": 512, "maxmem": 511}, "maxmem", "must not be less than memory (512 MiB)"),
        ({"vcpus": 3, "maxvcpus": 2}, "maxvcpus", "must not be less than vcpus (3)"),
        ({"image": None}, "kernel", "needs a kernel or an image"),
        ({"kernel": "k"}, "kernel", "must be an absolute path"),
        ({"ramdisk": "r"}, "ramdisk", "must be an absolute path"),
        ({"disk": (Disk("xvda", "a"),)}, "disk", "must be an absolute path"),
        ({"disk": (Disk("xvda", ""),)}, "disk", "the file or device to attach is missing"),
        ({"disk": (Disk("xvda", "/a"), Disk("xvda", "/b"))}, "disk", 'The device "xvda" is already defined'),
        ({"disk": (Disk("xvda", "/a"), Disk("xvdb", "/a"))}, "disk", 'The file "/a" is already used'),
        ({"disk": (Disk("xvda1", "/a"), Disk("xvda", "/b"))}, "disk", "xvda1 is a partition of xvda"),
        ({"disk": (Disk("hdc", "/a", devtype=CD),)}, "disk", "a CD-ROM can't be written to"),
        ({"type": HVM, "disk": (Disk("hda1", "/a"),)}, "disk", "an HVM domain has whole disks only"),
        ({"type": HVM, "disk": (Disk("hde", "/a"),)}, "disk", "an HVM domain has hda to hdd"),
        ({"vif": (Vif(mac="00:16:3e:00:00:01"),) * 2}, "vif", 'The mac "00:16:3e:00:00:01" is already defined'),
        ({"vif": (Vif(vifname="a"),) * 2}, "vif", 'The vifname "a" is already defined'),
        ({"vif": (Vif(forward=(Forward(1, 2),)),) * 2}, "vif", 'The port "tcp 127.0.0.1:1" is already forwarded'),
        ({"vif": (Vif(forward=(Forward(1, 2, "tcp", "1.2.3.256"),)),)}, "vif", "is no IPv4 address"),
        ({"vif": (Vif(forward=(Forward(1, 2, "tcp", "1.2.3.04"),)),)}, "vif", "is no IPv4 address"),
        ({"vif": (Vif(mac="01:00:5e:00:00:01"),)}, "vif", "can't be an interface's own address"),
        ({"vif": (Vif(mac="00:00:00:00:00:00"),)}, "vif", "can't be an interface's own address"),
        ({"vif": (Vif(bridge="br0", forward=(Forward(1, 2),)),)}, "vif", "can't forward ports"),
        ({"vnclisten": "1.2.3."}, "vnclisten", "is no IPv4 address"),
    ],
)
def test_refusals(fields: dict[str, Any], key: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check(config(**fields))
    assert message in caught.value.message
    assert caught.value.key == key


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"memory": 512, "maxmem": 512, "vcpus": 2, "maxvcpus": 2},
        {"image": None, "kernel": "/k"},
        {"disk": (Disk("xvda1", "/a"), Disk("xvda2", "/b"), Disk("xvdb", "/c"))},
        {"disk": (Disk("hdc", "", access=R, devtype=CD), Disk("hdd", "", access=R, devtype=CD))},
        {"type": HVM, "image": None, "boot": "n"},
        {"type": HVM, "image": None, "disk": (Disk("hda", "/a"), Disk("xvdz", "/b")), "vnc": True},
        {"vif": (Vif(), Vif(), Vif(forward=(Forward(1, 2), Forward(1, 2, "udp"), Forward(1, 2, "tcp", "127.0.0.2"))))},
        {"vif": (Vif(mac="02:00:00:00:00:01"), Vif(mac="00:16:3e:00:00:02"))},
    ],
)
def test_what_is_fine(fields: dict[str, Any]) -> None:
    assert check(config(**fields)) == []


@pytest.mark.parametrize(
    ("fields", "warning"),
    [
        ({"firmware": Firmware.UEFI}, "firmware has an effect on hvm domains only"),
        ({"boot": "d"}, "boot has an effect on hvm domains only"),
        ({"vnc": True}, "vnc has an effect on hvm domains only"),
        ({"vif": (Vif(model="e1000"),)}, "model= of a vif has an effect on hvm domains only"),
        ({"type": HVM, "image": None}, "there is nothing to boot from"),
        ({"type": HVM, "image": None, "boot": "n", "extra": "x"}, "extra: no effect without a kernel or an image"),
        ({"type": HVM, "kernel": "/k", "firmware": Firmware.UEFI}, "firmware is not used where a kernel is given"),
        ({"type": HVM, "vnc": True, "vnclisten": "0.0.0.0"}, "VNC listens on 0.0.0.0 without a password"),
        ({"extra": "é" * 1100}, "the kernel's command line has 2200 bytes"),
        ({"disk": (Disk("xvda", "/a.qcow2", DiskFormat.RAW),)}, "is attached as raw"),
    ],
)
def test_warnings(fields: dict[str, Any], warning: str) -> None:
    (found,) = check(config(**fields))
    assert found.startswith(warning) or warning in found

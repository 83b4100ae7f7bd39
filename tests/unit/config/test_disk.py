"""Disk specifications."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyxen.config.disk import parse_disk
from pyxen.config.model import Disk, DiskAccess, DiskFormat, DiskType
from pyxen.errors import ConfigError

RAW, QCOW2, AUTO = DiskFormat.RAW, DiskFormat.QCOW2, DiskFormat.AUTO
R, W, SHARED = DiskAccess.READ, DiskAccess.WRITE, DiskAccess.WRITE_SHARED


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("file:/a.img,xvda,w", Disk("xvda", "/a.img", RAW, W)),
        ("file:a.img,xvda,w", Disk("xvda", "/here/a.img", RAW, W)),
        ("file:/a,xvda,w,rate=80Mb/s,iops=9", Disk("xvda", "/a", RAW, W, rate=10**7, iops=9)),
        ("phy:/dev/x,xvdb,r", Disk("xvdb", "/dev/x", RAW, R)),
        ("phy:vg0/web,xvda1,w!", Disk("xvda1", "/dev/vg0/web", RAW, SHARED)),
        ("tap:aio:/p,xvda,w", Disk("xvda", "/p", RAW, W)),
        ("tap:tapdisk:aio:/p,xvda,w", Disk("xvda", "/p", RAW, W)),
        ("tap:qcow2:/p.qcow2,xvda,w", Disk("xvda", "/p.qcow2", QCOW2, W)),
        ("tap2:/p,xvda,w", Disk("xvda", "/p", AUTO, W)),
        ("qcow2:/p,xvda,ro", Disk("xvda", "/p", QCOW2, R)),
        ("file:/a,ioemu:hda,w", Disk("hda", "/a", RAW, W)),
        ("file:/a,/dev/sda,w", Disk("sda", "/a", RAW, W)),
        ("file:/a,hda:disk,w", Disk("hda", "/a", RAW, W)),
        ("file:/a,xvda,w,0", Disk("xvda", "/a", RAW, W)),
        ("file:/a,xvda,w,Domain-0,x86_64-abi", Disk("xvda", "/a", RAW, W)),
        ("/a.img,raw,xvda,rw", Disk("xvda", "/a.img", RAW, W)),
        (" /a.img , raw , xvda , rw ", Disk("xvda", "/a.img", RAW, W)),
        ("/a.img,,xvda", Disk("xvda", "/a.img", AUTO, W)),
        ("/a.img,xvda", Disk("xvda", "/a.img", AUTO, W)),
        ("/a.qcow2,qcow2,vdev=xvda,access=!", Disk("xvda", "/a.qcow2", QCOW2, SHARED)),
        ("/a=b,raw,xvda,rw,discard,backendtype=qdisk", Disk("xvda", "/a=b", RAW, W)),
        ("format=qcow2,vdev=xvda,access=rw,target=/a,b.qcow2", Disk("xvda", "/a,b.qcow2", QCOW2, W)),
        ("vdev=xvda,target=/a b=c, ", Disk("xvda", "/a b=c, ", AUTO, W)),
        ("/cd.iso,raw,hdc,devtype=cdrom", Disk("hdc", "/cd.iso", RAW, R, DiskType.CDROM)),
        ("/cd.iso,,hdc,cdrom", Disk("hdc", "/cd.iso", AUTO, R, DiskType.CDROM)),
        ("file:/cd.iso,hdc:cdrom,w", Disk("hdc", "/cd.iso", RAW, R, DiskType.CDROM)),
        (",hdc:cdrom,r", Disk("hdc", "", AUTO, R, DiskType.CDROM)),
        ("vdev=hdc,access=ro,devtype=cdrom", Disk("hdc", "", AUTO, R, DiskType.CDROM)),
    ],
)
def test_forms(text: str, expected: Disk) -> None:
    assert parse_disk(text, base=Path("/here")) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it is empty"),
        ("/a", "the device's name in the guest is missing"),
        ("target=/a", "the device's name in the guest is missing"),
        ("vdev=xvda", "the file or device to attach is missing"),
        (",xvda,w", "the file or device to attach is missing"),
        ("file:,xvda,w", "the file or device to attach is missing"),
        ("phy:,xvda,w", "the file or device to attach is missing"),
        ("file:/a,768,w", "'768' is no device"),
        ("file:/a,xvda,w,rate=fast", "'fast' is not a rate"),
        ("file:/a,xvda,w,iops=0", "iops '0' is not a number"),
        ("file:/a,xvd1,w", "'xvd1' is no device"),
        ("file:/a,hda:floppy,w", "neither disk nor cdrom"),
        ("/a,vdev=xvda,devtype=tape", "neither disk nor cdrom"),
        ("file:/a,xvda,x", "'x' is no access"),
        ("file:/a,xvda,w,3", "back ends in another domain"),
        ("file:/a,xvda,w,0,abi,more", "'more' has no place"),
        ("/a,format=iso,vdev=xvda", "'iso' is no format"),
        ("/a,vhd,xvda,w", "the format vhd is not supported"),
        ("tap:vmdk:/a,xvda,w", "the format vmdk is not supported"),
        ("drbd:r0,xvda,w", "drbd: is no kind of disk"),
        ("/a,raw,xvda,rw,script=block-iscsi", "block scripts are not run"),
        ("/a,vdef=xvda", "unknown option 'vdef'; did you mean 'vdev'?"),
        ("/a,vdev=xvda,target=/b", "'/a' needs its name too"),
        ("/a\n,xvda,w", "a control character"),
        ("/a\0,xvda,w", "a control character"),
        (f"/{'a' * 4096},xvda,w", "more than 4096 characters"),
    ],
)
def test_refusals(text: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_disk(text)
    assert reason in caught.value.message
    assert caught.value.message.startswith("disk ")
    assert caught.value.key == "disk"
    assert caught.value.hint

"""Disks and network interfaces that come and go while a guest runs, through xm: alike on both engines."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.guest.host import Host, type_line, wait_for

ENGINE = "xen" if "PYXEN_TEST_HOST" in os.environ else "qemu"
FIRST, SECOND = ("xvdb", "xvdc") if ENGINE == "xen" else ("vda", "vdb")
"""What a guest without other disks calls xvdb and xvdc."""


def _image(path: Path, mib: int, format: str = "raw") -> Path:
    subprocess.run(["qemu-img", "create", "-q", "-f", format, str(path), f"{mib}M"], check=True)
    return path


def _disks(host: Host, name: str = "web") -> dict[str, str]:
    """States by vdev."""
    found = json.loads(host.xm("block-list", "--format", "json", name))["disks"]
    return {each["disk"]["vdev"]: each["state"] for each in found}


def _vifs(host: Host, name: str = "web") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(host.xm("network-list", "--format", "json", name))["vifs"]
    return found


def _open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def _refused(host: Host, *words: str) -> str:
    done = host.try_run("xm", *words)
    assert done.returncode == 1, done
    return done.stderr


def test_disks_come_and_go(host: Host) -> None:
    raw, layered = _image(host.root / "a.img", 16), _image(host.root / "b.qcow2", 24, "qcow2")
    host.xm("create", "image=tiny", "name=web", f"engine={ENGINE}", "memory=128")
    console = host.ready("web")

    def sectors(device: str) -> str:
        return type_line(console, f"cat /sys/block/{device}/size 2>/dev/null || echo none")

    assert host.xm("block-list", "web") == ""
    host.xm("block-attach", "web", f"file:{raw}", "xvdb", "w")
    wait_for(lambda: sectors(FIRST) == "32768", "the guest has the raw disk")
    host.xm("block-attach", "web", "format=qcow2", "vdev=xvdc", "access=rw", f"target={layered}")
    wait_for(lambda: sectors(SECOND) == "49152", "the guest has the qcow2 disk")
    header, first, second = host.xm("block-list", "web").splitlines()
    assert header == "Vdev  BE handle state evt-ch ring-ref BE-path"
    assert (first.split()[:4], second.split()[:4]) == (["51728", "0", "0", "4"], ["51744", "0", "0", "4"])

    type_line(console, f"for n in {FIRST} {SECOND}; do echo written to $n | dd of=/dev/$n conv=fsync 2>/dev/null; done")
    assert raw.read_bytes().startswith(f"written to {FIRST}\n".encode())
    assert type_line(console, f"head -n 1 /dev/{SECOND}") == f"written to {SECOND}"

    host.xm("block-resize", "web", "xvdb", "32M")
    host.xm("block-resize", "web", "xvdc", "40")
    wait_for(lambda: (sectors(FIRST), sectors(SECOND)) == ("65536", "81920"), "the guest sees both new sizes")
    assert "can't be made smaller" in _refused(host, "block-resize", "web", "xvdb", "16M")

    # At most 2 MiB a second, and five requests: a busy machine makes it slower, never faster.
    now = "cut -d' ' -f1 /proc/uptime"
    type_line(console, f"took() {{ {now}; dd if=/dev/{FIRST} of=/dev/null iflag=direct $* 2>/dev/null; {now}; }}")

    def seconds(what: str) -> float:
        began, ended = map(float, type_line(console, f"took {what}").split())
        return ended - began

    host.xm("block-limit", "web", "xvdb", "--rate", f"{2 << 20}B/s")
    assert seconds("bs=1M count=8") > 3
    host.xm("block-limit", "web", "xvdb", "--rate", "none", "--iops", "5")
    assert seconds("bs=256k count=15") > 2
    assert "iops=5" in host.xm("block-list", "-l", "web")
    host.xm("block-limit", "web", "xvdb", "--iops", "0")

    # What can't be: no such file, a name that is taken, a file that is in use.
    assert "does not exist" in _refused(host, "block-attach", "web", "file:/nowhere.img", "xvdd", "w")
    other = _image(host.root / "c.img", 1)
    assert '"xvdb" is already defined' in _refused(host, "block-attach", "web", f"file:{other}", "xvdb", "w")
    assert "is already used" in _refused(host, "block-attach", "web", f"file:{raw}", "xvdd", "r")
    assert "Cannot find device 'xvdd'" in _refused(host, "block-detach", "web", "xvdd")
    assert list(_disks(host)) == ["xvdb", "xvdc"]

    # A later xend knows of them, and so does the domain's next life.
    host.kill_xend()
    host.start()
    assert _disks(host) == {"xvdb": "attached", "xvdc": "attached"}
    host.xm("reboot", "-w", "web")
    console = host.ready("web")
    wait_for(lambda: (sectors(FIRST), sectors(SECOND)) == ("65536", "81920"), "both are there after the reboot")
    host.xm("block-detach", "web", "xvdb")
    assert _disks(host) == {"xvdc": "attached"}
    wait_for(lambda: sectors(FIRST) == "none", "the guest is done with it")
    host.xm("block-detach", "web", "51744")
    assert _disks(host) == {}
    wait_for(lambda: sectors(SECOND) == "none", "the guest is done with it")

    # Nothing is left of those that have gone.
    pid = host.domains()["web"]["pid"]
    before = _open_files(pid)
    for _ in range(3):
        host.xm("block-attach", "web", f"tap:qcow2:{layered}", "xvdb", "w")
        wait_for(lambda: sectors(FIRST) == "81920", "the disk is back")
        host.xm("block-detach", "web", "xvdb")
        wait_for(lambda: sectors(FIRST) == "none", "the guest is done with it")
    assert _open_files(pid) == before
    subprocess.run(["qemu-img", "check", "-q", str(layered)], check=True)

    # Standing still, it can't let go; it does so when it runs again, though nobody waits for that any more.
    host.xm("block-attach", "web", f"file:{raw}", "xvdb", "w")
    wait_for(lambda: sectors(FIRST) == "65536", "the disk is back")
    (host.root / "state" / "xend.toml").write_text("detach_timeout = 1\n")
    host.kill_xend()
    host.start()
    host.xm("pause", "web")
    assert "has not let go of disk xvdb within 1 s" in _refused(host, "block-detach", "web", "xvdb")
    assert _disks(host) == {"xvdb": "detaching"}
    if ENGINE == "qemu":
        assert "against its guest's will" in _refused(host, "block-detach", "--force", "web", "xvdb")
    host.xm("unpause", "web")
    wait_for(lambda: _disks(host) == {}, "the guest has let go")
    host.xm("destroy", "web")


def test_interfaces_come_and_go_and_a_state_keeps_its_slots(host: Host) -> None:
    host.xm("create", "image=tiny", "name=web", f"engine={ENGINE}", "memory=128", "vif=mac=00:16:3e:00:00:01")
    console = host.ready("web")
    listed = "cat /sys/class/net/*/address | grep -v 00:00:00:00:00:00 | sort | xargs"
    host.xm("network-attach", "web", "mac=00:16:3e:00:00:02")
    wait_for(lambda: type_line(console, listed).split() == ["00:16:3e:00:00:01", "00:16:3e:00:00:02"], "it has both")
    assert "is already defined" in _refused(host, "network-attach", "web", "mac=00:16:3e:00:00:02")
    assert "no bridge nowhere0" in _refused(host, "network-attach", "web", "bridge=nowhere0")
    assert "Cannot find device '7'" in _refused(host, "network-detach", "web", "7")
    if ENGINE == "qemu":
        assert "user-mode network" in _refused(host, "network-limit", "web", "1", "1MB/s")
    else:
        host.xm("network-limit", "web", "1", "1MB/s")
    assert [vif["vif"].get("rate") for vif in _vifs(host)] == [None, None if ENGINE == "qemu" else 1_000_000]
    host.xm("network-detach", "web", "0")
    wait_for(lambda: type_line(console, listed) == "00:16:3e:00:00:02", "the guest is done with it")
    header, row = host.xm("network-list", "web").splitlines()
    assert header.startswith("Idx BE     MAC Addr.     handle state evt-ch tx-/rx-ring-ref BE-path")
    assert row.split()[:2] == ["1", "0"]

    # The machine has a gap now, and a disk where the first interface was. A restored guest finds it so.
    disk = _image(host.root / "a.img", 16)
    host.xm("block-attach", "web", f"file:{disk}", "xvdb", "w")
    wait_for(lambda: type_line(console, f"cat /sys/block/{FIRST}/size") == "32768", "the guest has the disk")
    host.xm("save", "web", str(host.root / "web.saved"))
    host.xm("restore", str(host.root / "web.saved"))
    console.close()
    console = host.console("web")
    console.sendline("")
    console.expect("# ")
    assert type_line(console, listed) == "00:16:3e:00:00:02"
    assert type_line(console, f"dd if=/dev/{FIRST} of=/dev/null 2>/dev/null && echo readable") == "readable"
    assert [(each["number"], each["state"]) for each in _vifs(host)] == [(1, "attached")]
    host.xm("network-detach", "web", "00:16:3e:00:00:02")
    assert _vifs(host) == []
    wait_for(lambda: type_line(console, listed) == "", "the guest is done with it")
    host.xm("destroy", "web")


def test_an_hvm_domain_has_discs_and_virtio_disks(host: Host) -> None:
    disk, disc = _image(host.root / "a.img", 16), _image(host.root / "cd.iso", 4)
    host.xm("create", "image=tiny", "type=hvm", "name=web", "engine=qemu", "memory=192", "disk=,hdc:cdrom,r")
    console = host.ready("web")
    pid = host.domains()["web"]["pid"]

    def holds(path: Path) -> bool:
        return any(Path(f"/proc/{pid}/fd/{fd}").resolve() == path for fd in os.listdir(f"/proc/{pid}/fd"))

    host.xm("cd-insert", "web", "hdc", str(disc))
    assert holds(disc)
    host.xm("cd-insert", "web", "hdc", str(disk))
    assert (holds(disc), holds(disk)) == (False, True)
    host.xm("cd-eject", "web", "hdc")
    assert (holds(disc), holds(disk)) == (False, False)
    assert "can be plugged into IDE or SATA" in _refused(host, "block-attach", "web", f"file:{disk}", "hdb", "w")
    assert "Cannot find device 'hdd'" in _refused(host, "cd-insert", "web", "hdd", str(disc))
    host.xm("block-attach", "web", f"file:{disk}", "xvdb", "w")
    wait_for(lambda: type_line(console, "cat /sys/block/vda/size 2>/dev/null") == "32768", "the guest has the disk")
    assert host.xm("block-list", "web").splitlines()[1].split()[:4] == ["5632", "0", "0", "4"]
    host.xm("block-detach", "web", "xvdb")
    assert not holds(disk)
    host.xm("destroy", "web")


@pytest.mark.parametrize("firmware", ["bios", "uefi"])
def test_an_express_machine_has_ports_for_what_comes_and_goes(host: Host, firmware: str) -> None:
    first, second = _image(host.root / "a.img", 16), _image(host.root / "b.img", 24)
    macs = [f"00:16:3e:00:00:0{number}" for number in range(1, 4)]
    vif = f'vif=["mac={macs[0]}", "mac={macs[1]},model=e1000"]'
    words = ["type=hvm", "hdtype=ahci", f"firmware={firmware}", "name=web", "memory=512", f"disk=file:{first},xvdb,w"]
    host.xm("create", "image=tiny", *words, vif)
    console = host.ready("web", timeout=120)

    def disks() -> str:
        return type_line(console, "cat /sys/block/vd*/size 2>/dev/null | tr '\\n' ' '")

    def cards() -> list[str]:
        found = type_line(console, "cat /sys/class/net/e*/address | tr '\\n' ' '").split()
        return sorted(mac for mac in found if mac in macs)

    assert disks() == "32768"
    host.xm("block-attach", "web", f"file:{second}", "xvdc", "w")
    wait_for(lambda: disks() == "32768 49152", "the guest has both disks")
    host.xm("network-attach", "web", f"mac={macs[2]}")
    wait_for(lambda: macs[2] in cards(), "the guest has the card")
    console.close()
    host.xm("save", "web", str(host.root / "web.saved"))
    host.xm("restore", str(host.root / "web.saved"))
    console = host.console("web")
    console.sendline("")
    console.expect("# ")
    assert type_line(console, "dd if=/dev/vdb of=/dev/null 2>/dev/null && echo readable") == "readable"
    host.xm("block-detach", "web", "xvdb")
    wait_for(lambda: disks() == "49152", "the guest has let go of xvdb")
    host.xm("block-detach", "web", "xvdc")
    wait_for(lambda: disks() == "", "the guest has let go of xvdc")
    for mac in (macs[0], macs[2]):
        host.xm("network-detach", "web", mac)
    wait_for(lambda: macs[0] not in cards() and macs[2] not in cards(), "the guest has let go of both cards")
    assert "is on a bus of q35" in _refused(host, "network-detach", "web", macs[1])
    host.xm("destroy", "web")

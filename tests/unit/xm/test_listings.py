"""What the listing commands print, to the column."""

from __future__ import annotations

import json
import time

import pytest

from pyxen.config.model import Disk, DomainConfig, DomainType, PciDevice, UsbDevice, UsbType, Vif
from pyxen.device_api import HostPciDevice
from pyxen.xm import tables
from pyxen.xm.output import colour_state

from .conftest import Xm
from .fake import DOM0, HALTED, WEB, FakeClient, domain


def test_list(xm: Xm) -> None:
    assert xm("list").out == (
        "Name                                        ID   Mem VCPUs      State   Time(s)\n"
        "Domain-0                                     0  1500     4     r-----    123.5\n"
        "managed                                           64     1                 0.0\n"
        "web                                          3   256     1     -b----      1.6\n"
    )


def test_list_chosen(xm: Xm) -> None:
    assert [line.split()[0] for line in xm("list", "web", "0").out.splitlines()] == ["Name", "web", "Domain-0"]
    assert [line.split()[0] for line in xm("list", "--state", "halted").out.splitlines()] == ["Name", "managed"]
    assert len(xm("list", "--state", "all").out.splitlines()) == 4
    assert xm("list", "--state", "halted", "web").status == 2


@pytest.mark.parametrize("args", [["-l"], ["--format", "json"]])
def test_list_json(xm: Xm, args: list[str]) -> None:
    said = json.loads(xm("list", *args).out)
    assert [each["name"] for each in said["domains"]] == ["Domain-0", "managed", "web"]
    assert said["domains"][1]["domid"] is None


def test_format_by_environment(xm: Xm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XM_FORMAT", "json")
    assert json.loads(xm("list", "web").out)["domains"][0]["memory_mib"] == 256
    assert xm("list", "--format", "table", "web").out.startswith("Name ")


def test_vcpu_list(xm: Xm) -> None:
    assert xm("vcpu-list", "web", "managed").out == (
        "Name                                ID  VCPU   CPU State   Time(s) CPU Affinity\n"
        "web                                  3     0     1   -b-       3.2 any cpu\n"
        "web                                  3     1     -   --p       0.0 1\n"
        "managed                                    0                   0.0 any cpu\n"
    )
    assert len(json.loads(xm("vcpu-list", "--format", "json").out)["domains"]) == 3


@pytest.mark.parametrize(
    ("cpus", "text"),
    [(None, "any cpu"), ([0, 1, 2, 3], "any cpu"), ([], "no cpus"), ([3, 0, 1], "0-1,3"), ([2], "2")],
)
def test_affinity(cpus: list[int] | None, text: str) -> None:
    assert tables.affinity(cpus, 4) == text


def test_pools(xm: Xm) -> None:
    assert xm("cpupool-list").out == (
        "Name               CPUs   Sched     Active   Domain count\n"
        "Pool-0               2    credit       y          1\n"
        "fast                 0    credit       y          0\n"
    )
    assert xm("cpupool-list", "-c").out == "Name             CPU list\nPool-0           0,2\nfast             -\n"
    assert xm("cpupool-list", "-c", "fast").out.splitlines()[1:] == ["fast             -"]
    missing = xm("cpupool-list", "slow")
    assert (missing.status, missing.err.splitlines()[0]) == (1, "Error: Pool 'slow' does not exist.")
    assert json.loads(xm("cpupool-list", "--format", "json").out)["free"] == [3]


def test_sched_credit(xm: Xm) -> None:
    assert xm("sched-credit").out.splitlines()[:2] == [
        "Name                                ID Weight  Cap",
        "Domain-0                             0    256    0",
    ]
    (row,) = json.loads(xm("sched-credit", "-d", "web", "--format", "json").out)["domains"]
    assert row == {"domid": 3, "name": "web", "cpu_weight": 256, "cpu_cap": 0}


def test_info_with_the_topology(xm: Xm) -> None:
    assert xm("info", "-n").out.splitlines()[-7:] == [
        "cpu_topology           :",
        "cpu:    core    socket     node",
        "  0:       0         0        0",
        "  1:       2         1        1",
        "numa_info              :",
        "node:    memsize    memfree    distances",
        "   1:       2048        512      21,10",
    ]
    assert json.loads(xm("info", "-n", "--format", "json").out)["topology"]["nodes"][0]["free_mib"] == 512


def test_info(xm: Xm) -> None:
    lines = xm("info").out.splitlines()
    assert lines[:3] == [
        "host                   : box",
        "release                : 6.1.0",
        "version                : #1 SMP",
    ]
    assert "virt_caps              : (none)" in lines
    assert "total_memory           : 8000" in lines
    assert "engine_qemu            : 7.2 (it is there)" in lines
    assert json.loads(xm("info", "--format", "json").out)["kvm_verdict"] == "no /dev/kvm"


def test_uptime(xm: Xm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1000.0 + 3661)
    assert xm("uptime").out == (
        "Name                                ID Uptime \n"
        "Domain-0                             0 1 day,  2:03:04\n"
        "managed                                 0:00:00\n"
        "web                                  3  1:01:01\n"
    )
    assert xm("uptime", "-s", "web").out == " 01:17:41 up 1:01, web (3)\n"
    assert json.loads(xm("uptime", "--format", "json", "web").out)["domains"][0]["uptime_s"] == 3661


def test_names_ids_and_states(xm: Xm) -> None:
    assert xm("domid", "web").out == "3\n"
    assert xm("domid", "managed").out == "None\n"
    assert xm("domname", "3").out == "web\n"
    assert xm("domstate", "web").out == "idle\n"
    assert xm("domstate", "managed").out == "shutoff\n"
    assert xm("domstate", "0").out == "running\n"


def test_images(xm: Xm) -> None:
    assert xm("image", "list").out == (
        "Name                 Kind     Size(MiB) Created          Kernel\n"
        "tiny                 tiny          25.0 1970-01-01 00:00 6.1.0-56-cloud-amd64\n"
        "Not built yet: debian (xm image build NAME)\n"
    )
    assert json.loads(xm("image", "list", "--format", "json").out)["buildable"] == ["debian", "tiny"]


def test_texts(xm: Xm) -> None:
    assert xm("log", "--tail", "5").out == "log tail=5\n"
    assert xm("log", "-f", "--tail", "5").out == "followed tail=5\n"
    assert xm("dmesg").out == "probe: no\n"
    assert xm("version").out == "xm   0.1.0\nxend 0.2.0\n"
    assert json.loads(xm("version", "--format", "json").out) == {"xm": "0.1.0", "xend": "0.2.0"}


def test_events(xm: Xm) -> None:
    assert xm("events").out == "00:00:00 domain-stopped web (3) poweroff restarts=1\n"
    assert json.loads(xm("events", "--format", "json").out)["kind"] == "domain-stopped"


def test_top_once(xm: Xm, fake: FakeClient) -> None:
    lines = xm("top", "--delay", "0.1").out.splitlines()
    assert lines[0].split() == ["NAME", "ID", "STATE", "CPU(sec)", "CPU(%)", "MEM(MiB)", "MEM(%)", "VCPUS"]
    assert [line.split()[:3] for line in lines[1:]] == [["Domain-0", "0", "r-----"], ["web", "3", "-b----"]]
    row = json.loads(xm("top", "--delay", "0.1", "--format", "json").out)["domains"][1]
    assert (row["name"], row["memory_percent"], row["cpu_percent"]) == ("web", 3.2, 0.0)


def test_colour_keeps_the_width() -> None:
    plain = list(tables.domains([DOM0, HALTED, WEB]))
    painted = list(tables.domains([DOM0, HALTED, WEB], colour_state))
    assert plain[1] != painted[1]
    from click import unstyle

    assert [unstyle(line) for line in painted] == plain


def test_devices(xm: Xm, fake: FakeClient) -> None:
    assert (xm("block-list", "web").out, xm("network-list", "web").out) == ("", "")
    config = DomainConfig(
        name="disky",
        disk=(Disk(vdev="xvda", target="/srv/a.img"), Disk(vdev="xvdb", target="/srv/b.img")),
        vif=(Vif(mac="00:16:3e:00:00:01", bridge="br0"),),
    )
    fake.there.append(domain("disky", 5, config=config))
    assert xm("block-list", "disky").out == (
        "Vdev  BE handle state evt-ch ring-ref BE-path\n"
        "51712  0    0     4      -1     -1    /local/domain/0/backend/vbd/5/51712  \n"
        "51728  0    0     4      -1     -1    /local/domain/0/backend/vbd/5/51728  \n"
    )
    assert xm("network-list", "disky").out == (
        "Idx BE     MAC Addr.     handle state evt-ch tx-/rx-ring-ref BE-path\n"
        "0   0  00:16:3e:00:00:01    0     4      -1    -1   /-1      /local/domain/0/backend/vif/5/0  \n"
    )
    fake.addresses = {0: ["10.0.2.15/24", "fe80::1/64"]}
    header, row = xm("network-list", "disky").out.splitlines()
    assert header[header.index("IP Addr.") :] == "IP Addr."
    assert row[header.index("IP Addr.") :] == "10.0.2.15/24 fe80::1/64"
    said = json.loads(xm("network-list", "--format", "json", "disky").out)
    assert (said["agent"], said["interfaces"][0]["addresses"][1]) == ("qemu", "fe80::1/64")
    assert xm("block-list", "-l", "disky").out.splitlines()[0] == "format=auto,vdev=xvda,access=rw,target=/srv/a.img"
    assert xm("network-list", "-l", "disky").out == "mac=00:16:3e:00:00:01,bridge=br0\n"
    assert json.loads(xm("block-list", "--format", "json", "disky").out)["disks"][1]["disk"]["vdev"] == "xvdb"
    assert json.loads(xm("network-list", "--format", "json", "disky").out)["vifs"][0]["state"] == "attached"


def test_devices_of_the_host(xm: Xm, fake: FakeClient) -> None:
    def device(slot: str, driver: str | None, group: int | None, owner: str | None = None) -> HostPciDevice:
        kind, bound = "network controller", driver == "vfio-pci"
        return HostPciDevice(f"0000:03:{slot}", "8086", "10d3", kind, "", "", driver, group, bound, owner, "")

    named = HostPciDevice(
        "0000:00:02.0", "8086", "0412", "display controller", "Intel", "HD 4600", "i915", 1, False, None, "the screen"
    )
    fake.pci = [named, device("00.0", "vfio-pci", 12), device("00.1", "vfio-pci", 12, "web")]
    fake.pci.append(device("01.0", None, None))
    assert xm("pci-list-assignable-devices") == (0, "0000:03:00.0\n", "")
    assert xm("pci-assignable-list", "--all").out == (
        "Device       Group State      Driver         Domain           Name\n"
        "0000:00:02.0     1 kept       i915           -                Intel HD 4600\n"
        "0000:03:00.0    12 assignable vfio-pci       -                network controller 8086:10d3\n"
        "0000:03:00.1    12 assigned   vfio-pci       web              network controller 8086:10d3\n"
        "0000:03:01.0     - free       -              -                network controller 8086:10d3\n"
    )
    fake.pci, fake.pci_problem = [], "this host has no IOMMU"
    assert xm("pci-list-assignable-devices") == (0, "", "Warning: this host has no IOMMU\nGet one.\n")
    assert json.loads(xm("pci-list-assignable-devices", "--format", "json").out)["hint"] == "Get one."
    assert xm("usb-list-assignable-devices").out == "Bus Addr ID        Name\n  1    3 046d:c077 Logitech Mouse\n"
    assert len(json.loads(xm("usb-list-assignable-devices", "--format", "json").out)["devices"]) == 2


def test_devices_of_the_host_that_a_domain_has(xm: Xm, fake: FakeClient) -> None:
    config = DomainConfig(
        name="hosty",
        type=DomainType.HVM,
        pci=(PciDevice("0000:03:00.0"),),
        usbdev=(
            UsbDevice(type=UsbType.DISK, target="/srv/a.img", readonly=True, devid=0),
            UsbDevice(type=UsbType.REDIR, peer="unix:/r"),
        ),
    )
    fake.there += [domain("hosty", 5, config=config), domain("halted", None, config=config)]
    assert xm("pci-list", "hosty").out == "Vdev Device\n05.0 0000:03:00.0\n"
    assert xm("pci-list", "halted").out == "Vdev Device\n-    0000:03:00.0\n"
    assert xm("usb-list", "hosty").out == (
        "Idx State     Device\n0   attached  readonly=1,disk:/srv/a.img\n1   attached  redir=unix:/r\n"
    )
    assert (xm("pci-list", "web").out, xm("usb-list", "web").out) == ("", "")
    assert json.loads(xm("pci-list", "--format", "json", "hosty").out)["pci"][0]["slot"] == 5
    assert json.loads(xm("usb-list", "--format", "json", "hosty").out)["usb"][1]["device"]["peer"] == "unix:/r"

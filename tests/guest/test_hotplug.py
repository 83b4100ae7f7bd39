"""VCPUs, memory, keys and cores of running domains under QEMU, through xm."""

from __future__ import annotations

import json

import pytest

from tests.guest.host import Host, type_line, wait_for
from tests.testhost.cores import read


def online(host: Host, name: str = "web") -> list[int]:
    (found,) = json.loads(host.xm("vcpu-list", "--format", "json", name))["domains"]
    return [vcpu["number"] for vcpu in found["vcpus"] if vcpu["online"]]


def test_vcpus_come_while_the_guest_works(host: Host) -> None:
    host.xm("create", "image=tiny", "name=web", "engine=qemu", "memory=192", "vcpus=1", "maxvcpus=4")
    console = host.ready("web")
    assert type_line(console, "nproc; cat /sys/devices/system/cpu/possible").split() == ["1", "0-3"]
    type_line(console, "for n in 1 2; do (while :; do :; done) & done")
    host.xm("vcpu-set", "web", "3")
    wait_for(lambda: type_line(console, "nproc") == "3", "the guest uses three VCPUs")
    host.xm("vcpu-set", "web", "4")
    wait_for(lambda: type_line(console, "nproc") == "4", "the guest uses four VCPUs")
    assert online(host) == [0, 1, 2, 3]
    assert host.domains()["web"]["vcpus"] == 4
    host.kill_xend()
    host.start()
    assert online(host) == [0, 1, 2, 3]
    refused = host.try_run("xm", "vcpu-set", "web", "5")
    assert (refused.returncode, "at most 4 VCPUs" in refused.stderr) == (1, True)
    console = host.ready("web")
    for count in (2, 4, 1):
        host.xm("vcpu-set", "web", str(count))
        wait_for(lambda count=count: type_line(console, "nproc") == str(count), f"{count} VCPUs")  # type: ignore[misc]
        wait_for(lambda count=count: len(online(host)) == count, f"{count} online")  # type: ignore[misc]
    host.xm("destroy", "web")


@pytest.mark.timeout(900)
def test_a_guest_works_with_1_32_and_1_vcpus(host: Host) -> None:
    host.xm("create", "image=tiny", "name=web", "engine=qemu", "memory=256", "vcpus=1", "maxvcpus=32")
    console = host.ready("web")
    # Written anew, the file would be empty for a moment.
    load = "while :; do n=$((n + 1)); [ $((n % 500)) = 0 ] && echo $n >>/tmp/load; done"
    type_line(console, f"sh -c '{load}' &")
    done = 0
    for count in (32, 1):
        host.xm("vcpu-set", "web", str(count), timeout=300)
        wait_for(lambda count=count: type_line(console, "nproc") == str(count), f"{count} VCPUs", 300)  # type: ignore[misc]
        assert online(host) == list(range(count))
        before, done = done, int(type_line(console, "tail -n 1 /tmp/load"))
        assert done > before, "the load goes on"
    assert type_line(console, "dmesg | grep -cE 'WARN|BUG|Call Trace|soft lockup'") == "0"
    host.xm("destroy", "web")


def test_memory_shrinks_and_grows(host: Host) -> None:
    host.xm("create", "image=tiny", "name=web", "engine=qemu", "memory=160", "maxmem=256")
    console = host.ready("web")
    total = "awk '/MemTotal/ { print $2 }' /proc/meminfo"

    def both(mib: int) -> bool:
        missing = 256 - mib
        return host.domains()["web"]["memory_mib"] == mib and int(type_line(console, total)) < whole - missing * 1000

    whole = 256 << 10
    wait_for(lambda: both(160), "the balloon holds what is above memory")
    host.xm("mem-set", "web", "96m")
    wait_for(lambda: both(96), "the guest has shrunk")
    host.xm("mem-set", "web", "256")
    wait_for(lambda: host.domains()["web"]["memory_mib"] == 256, "the guest has grown")
    wait_for(lambda: int(type_line(console, total)) > 200 << 10, "all of its memory is back")
    refused = host.try_run("xm", "mem-set", "web", "257")
    assert (refused.returncode, "at most 256 MiB, not 257" in refused.stderr) == (1, True)
    host.xm("mem-set", "web", "128")
    wait_for(lambda: host.domains()["web"]["memory_mib"] == 128, "the guest has shrunk")
    host.kill_xend()
    host.start()
    assert host.domains()["web"]["memory_mib"] == 128
    host.xm("destroy", "web")


def test_keys_triggers_and_cores(host: Host) -> None:
    host.xm(
        *("create", "image=tiny", "name=web", "engine=qemu", "memory=128", "on_crash=coredump-restart"),
        "extra=sysrq_always_enabled",
    )
    console = host.ready("web")
    type_line(console, "echo 0123456789abcdef0123 > /run/marker")
    core = host.root / "web.core"
    assert host.xm("dump-core", "web", str(core)) == "Dumping core of domain: web ...\n"
    found = read(core, b"0123456789abcdef0123")
    assert found["word"]
    assert {name for name, _, _ in found["notes"]} == {"CORE", "QEMU"}
    core.unlink()
    assert host.domains()["web"]["domid"] == 1
    refused = host.try_run("xm", "dump-core", "-L", "web", str(core))
    assert (refused.returncode, "pauses a guest" in refused.stderr) == (1, True)
    assert not list(host.root.glob("*.part"))
    host.xm("trigger", "web", "nmi")
    console.expect("NMI received")
    console.sendline("")
    host.xm("sysrq", "web", "h")
    console.expect("sysrq: HELP")
    host.xm("sysrq", "web", "c")
    wait_for(lambda: host.domains().get("web", {}).get("domid") == 2, "it is back after its crash")
    (dumped,) = (host.root / "state" / "dump").iterdir()
    assert read(dumped, b"0123456789abcdef0123")["word"]
    host.ready("web").close()
    host.xm("trigger", "web", "reset")
    wait_for(lambda: host.domains().get("web", {}).get("domid") == 3, "it is back after its reset")
    host.ready("web").close()
    host.xm("dump-core", "--crash", "web")
    assert host.domains() == {}
    assert len(list((host.root / "state" / "dump").iterdir())) == 2


def test_a_managed_domain_starts_with_what_was_set_while_it_did_not_run(host: Host) -> None:
    host.xm("new", "image=tiny", "name=web", "engine=qemu", "memory=256")
    host.xm("vcpu-set", "web", "2")
    host.xm("mem-set", "web", "160")
    host.xm("start", "web")
    console = host.ready("web")
    assert type_line(console, "nproc") == "2"
    wait_for(lambda: host.domains()["web"]["memory_mib"] == 160, "the balloon holds what is above memory")
    host.xm("destroy", "web")
    host.xm("delete", "web")

"""Where domains run, and how much: what the kernel has been told by xm."""

from __future__ import annotations

import json
import os
import time

from pyxen.engine import cgroup
from pyxen.engine.threads import vcpu_threads
from tests.guest.host import Host, type_line, wait_for


def affinities(host: Host, name: str) -> dict[int, list[int]]:
    """By the kernel's word, of each VCPU that has a thread."""
    threads = vcpu_threads(host.domains()[name]["pid"])
    return {number: sorted(os.sched_getaffinity(thread)) for number, thread in sorted(threads.items())}


def shown(host: Host, name: str) -> list[str]:
    return [line.split(maxsplit=6)[-1] for line in host.xm("vcpu-list", name).splitlines()[1:]]


def test_vcpus_stay_where_they_are_pinned(host: Host) -> None:
    here = sorted(os.sched_getaffinity(0))
    first, last = here[0], here[-1]
    words = ("create", "image=tiny", "name=web", "engine=qemu", "memory=96", "vcpus=1", "maxvcpus=2")
    host.xm(*words, f"cpus={first}")
    assert affinities(host, "web") == {0: [first]}
    host.xm("vcpu-pin", "web", "1", str(last))
    host.xm("vcpu-pin", "web", "0", "-", str(last))
    host.ready("web").close()
    host.xm("vcpu-set", "web", "2")
    pinned = {0: [first], 1: [last]}
    if len(here) > 1:  # with one CPU, QEMU has one thread for both
        assert affinities(host, "web") == pinned
        assert shown(host, "web") == [f"{first} / {last}", str(last)]
    host.kill_xend()
    host.start()
    console = host.ready("web")
    console.sendline("reboot -f")
    wait_for(lambda: host.domains().get("web", {}).get("domid") == 2, "it is back")
    if len(here) > 1:
        assert affinities(host, "web") == pinned
        host.xm("cpupool-cpu-remove", "Pool-0", str(last))
        host.xm("cpupool-create", "name=fast", f"cpus={last}")
        host.xm("cpupool-migrate", "web", "fast")
        tasks = os.listdir(f"/proc/{host.domains()['web']['pid']}/task")
        assert {tuple(os.sched_getaffinity(int(task))) for task in tasks} == {(last,)}
        host.xm("cpupool-migrate", "web", "Pool-0")
        assert affinities(host, "web")[0] == [first]
        assert f"fast             {last}" in host.xm("cpupool-list", "-c").splitlines()
    refused = host.try_run("xm", "vcpu-pin", "web", "1", "9000")
    assert (refused.returncode, "Cannot pin vcpu: 1 to cpu: [9000]" in refused.stderr) == (1, True)
    host.xm("destroy", "web")


def test_the_heavier_domain_gets_more(host: Host) -> None:
    cpu = min(os.sched_getaffinity(0))
    for name in ("heavy", "light"):
        host.xm("create", "image=tiny", f"name={name}", "engine=qemu", "memory=96", f"cpus={cpu}")
        type_line(host.ready(name), "(while :; do :; done) &")
    refused = host.try_run("xm", "sched-credit", "-d", "heavy", "-w", "2048")
    if refused.returncode:  # no cpu controller, or not ours
        assert "no cpu controller of cgroups" in refused.stderr
    else:
        host.xm("sched-credit", "-d", "light", "-w", "128", "-c", "80")
        rows = {line.split()[0]: line.split()[2:] for line in host.xm("sched-credit").splitlines()[1:]}
        assert rows == {"Domain-0": ["256", "0"], "heavy": ["2048", "0"], "light": ["128", "80"]}
        roots, uuid = cgroup.find_roots(), host.domains()["light"]["uuid"]
        if roots.cpu is not None:
            told = [(roots.cpu / uuid / name).read_text().strip() for name in ("cpu.shares", "cpu.cfs_quota_us")]
            assert told == ["512", "80000"]
        elif roots.unified is not None:
            told = [(roots.unified / uuid / name).read_text().strip() for name in ("cpu.weight", "cpu.max")]
            assert told == ["50", "80000 100000"]
        before = used(host)
        wait_for(lambda: more(before, used(host)), "the heavy one has got more")
    for name in ("heavy", "light"):
        host.xm("destroy", name)


def used(host: Host) -> dict[str, float]:
    time.sleep(0.5)
    listed = json.loads(host.xm("list", "--format", "json"))["domains"]
    return {each["name"]: each["cpu_time_s"] for each in listed}


def more(before: dict[str, float], after: dict[str, float]) -> bool:
    heavy, light = (after[name] - before[name] for name in ("heavy", "light"))
    return heavy > 0.5 and heavy > 2 * light

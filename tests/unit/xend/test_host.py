"""Facts about a host that is written down here, and about this one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyxen.api import PowerState
from pyxen.engine.probe import Verdict
from pyxen.paths import Roots
from pyxen.xend import host

CPUINFO = """\
processor\t: 0
model name\t: AMD EPYC 7B13
cpu MHz\t\t: 2450.000
siblings\t: 8
cpu cores\t: 4
flags\t\t: fpu svm npt xsave

processor\t: 1
model name\t: another
"""
# CPU 0: user 500 with 200 of guests, nice 10, system 90; CPU 1: softirq 50. 100 ticks a second.
STAT = """\
cpu  500 10 90 1000 5 0 50 0 200 0
cpu0 500 10 90 500 5 0 0 0 200 0
cpu1 0 0 0 500 0 0 50 0 0 0
btime 1700000000
"""


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    (tmp_path / "cpuinfo").write_text(CPUINFO)
    (tmp_path / "meminfo").write_text("MemTotal:        8388608 kB\nMemAvailable:    4194304 kB\nHugePages_Total: 3\n")
    (tmp_path / "stat").write_text(STAT)
    (tmp_path / "uptime").write_text("3600.25 7000.00\n")
    return tmp_path


@pytest.fixture
def sys(tmp_path: Path) -> Path:
    for number in range(2):
        (tmp_path / f"sys/devices/system/node/node{number}").mkdir(parents=True)
    (tmp_path / "sys/kernel/iommu_groups/0").mkdir(parents=True)
    (tmp_path / "sys/kernel/mm/ksm").mkdir(parents=True)
    for name, value in (("run", 1), ("pages_sharing", 512), ("pages_shared", 256)):
        (tmp_path / "sys/kernel/mm/ksm" / name).write_text(f"{value}\n")
    return tmp_path / "sys"


def test_host_facts(proc: Path, sys: Path) -> None:
    roots = Roots(Path("/s"), Path("/r"))
    verdict = Verdict(True, "it ran a guest")
    facts = host.host_facts(engines=[], domains_running=3, roots=roots, verdict=verdict, proc=proc, sys=sys)
    assert (facts.accelerator, facts.kvm_verdict) == ("kvm", "it ran a guest")
    assert (facts.cpu_model, facts.cpu_mhz) == ("AMD EPYC 7B13", 2450.0)
    assert (facts.nr_nodes, facts.cores_per_socket, facts.threads_per_core) == (2, 4, 2)
    assert facts.virt_caps == "hvm hap hvm_directio"
    assert (facts.total_memory_mib, facts.free_memory_mib) == (8192, 4096)
    assert (facts.sharing, facts.sharing_freed_mib, facts.sharing_used_mib) == (True, 2, 1)
    assert facts.uptime_s == 3600.25
    assert (facts.domains_running, facts.state_root, facts.run_root) == (3, "/s", "/r")
    assert facts.nr_cpus == os.cpu_count()


def test_domain_0_is_what_others_leave(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_CLK_TCK": 100}[name])
    domain = host.dom0(running_mib=1024, proc=proc)
    assert (domain.domid, domain.name, domain.engine) == (0, "Domain-0", "host")
    assert domain.uuid == "00000000-0000-0000-0000-000000000000"
    assert domain.memory_mib == 8192 - 1024
    assert (domain.power_state, domain.state) == (PowerState.RUNNING, "r-----")
    assert domain.cpu_time_s == 4.5
    assert domain.started_at == 1700000000
    vcpus = host.dom0_vcpus(proc=proc)
    assert [(vcpu.number, vcpu.cpu, vcpu.time_s) for vcpu in vcpus] == [(0, 0, 4.0), (1, 1, 0.5)]


def test_more_promised_than_there_is(proc: Path) -> None:
    assert host.dom0(running_mib=10**6, proc=proc).memory_mib == 0


def test_a_host_that_hides_everything(tmp_path: Path) -> None:
    nothing = tmp_path / "nothing"
    roots, verdict = Roots(tmp_path, tmp_path), Verdict(False, "there is no /dev/kvm")
    facts = host.host_facts(engines=[], domains_running=0, roots=roots, verdict=verdict, proc=nothing, sys=nothing)
    assert facts.accelerator == "tcg"
    assert (facts.total_memory_mib, facts.virt_caps, facts.nr_nodes) == (0, "", 1)
    assert host.dom0(running_mib=0, proc=nothing).cpu_time_s == 0


def test_this_host() -> None:
    assert host.dom0(running_mib=0).memory_mib > 0
    assert host.dom0(running_mib=0).cpu_time_s > 0
    assert len(host.dom0_vcpus()) >= 1

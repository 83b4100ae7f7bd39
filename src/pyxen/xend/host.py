"""Facts about the host, and Domain-0 made of them: read from /proc and /sys, without asking any program."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pyxen import __version__, api
from pyxen.engine.probe import Verdict, kvm_verdict
from pyxen.engine.topology import read_topology
from pyxen.paths import Roots

PROC = Path("/proc")
SYS = Path("/sys")
DOM0_UUID = "00000000-0000-0000-0000-000000000000"
# Columns of /proc/stat after the name, in ticks: user nice system idle iowait irq softirq steal guest guest_nice.
# A guest's time is part of user's, so that Domain-0's is the rest.
_BUSY = (0, 1, 2, 5, 6)
_GUEST = (8, 9)


@dataclass(frozen=True, slots=True)
class Cpus:
    """What doesn't change about the host's CPUs."""

    model: str
    mhz: float
    cores_per_socket: int
    threads_per_core: int
    virt_caps: str


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """Seconds that the host's CPUs have spent on anything but guests' code, and the boot's time since 1970."""

    by_cpu: dict[int, float]
    booted_at: float

    @property
    def total(self) -> float:
        return sum(self.by_cpu.values())


def host_facts(
    *,
    engines: Sequence[api.EngineInfo],
    domains_running: int,
    clones_waiting: int = 0,
    roots: Roots,
    verdict: Verdict | None = None,
    proc: Path = PROC,
    sys: Path = SYS,
) -> api.Host:
    """Everything that ``xm info`` says. Without a ``verdict`` KVM is probed, once a boot: call it in a thread."""
    verdict = verdict or kvm_verdict(roots.state)
    names = os.uname()
    cpus = read_cpus(proc, sys)
    memory = read_memory(proc)
    ksm, page = sys / "kernel/mm/ksm", os.sysconf("SC_PAGE_SIZE")
    return api.Host(
        host=names.nodename,
        release=names.release,
        version=names.version,
        machine=names.machine,
        nr_cpus=os.cpu_count() or 1,
        nr_nodes=max(1, sum(1 for _ in (sys / "devices/system/node").glob("node[0-9]*"))),
        cores_per_socket=cpus.cores_per_socket,
        threads_per_core=cpus.threads_per_core,
        cpu_mhz=cpus.mhz,
        cpu_model=cpus.model,
        virt_caps=cpus.virt_caps,
        total_memory_mib=memory.get("MemTotal", 0),
        free_memory_mib=memory.get("MemAvailable", 0),
        sharing_freed_mib=_read_number(ksm / "pages_sharing") * page >> 20,
        sharing_used_mib=_read_number(ksm / "pages_shared") * page >> 20,
        sharing=_read_number(ksm / "run") == 1,
        uptime_s=float(_read(proc / "uptime").partition(" ")[0] or 0),
        pyxen_version=__version__,
        domains_running=domains_running,
        clones_waiting=clones_waiting,
        accelerator="kvm" if verdict.usable else "tcg",
        kvm_verdict=verdict.reason,
        engines=list(engines),
        state_root=str(roots.state),
        run_root=str(roots.run),
    )


def host_topology(sys: Path = SYS) -> api.HostTopology:
    """What ``xm info -n`` says besides."""
    found = read_topology(sys)
    return api.HostTopology(
        cpus=[api.HostCpu(number, cpu.core, cpu.socket, cpu.node) for number, cpu in found.cpus.items()],
        nodes=[
            api.HostNode(number, node.memory_mib, node.free_mib, list(node.distances))
            for number, node in found.nodes.items()
        ],
    )


def dom0(*, running_mib: int, proc: Path = PROC) -> api.Domain:
    """Domain-0: the host itself, less the memory promised to the ``running_mib`` of other domains."""
    times = read_times(proc)
    count = os.cpu_count() or 1
    memory = max(read_memory(proc).get("MemTotal", 0) - running_mib, 0)
    return api.Domain(
        domid=0,
        name="Domain-0",
        uuid=DOM0_UUID,
        power_state=api.PowerState.RUNNING,
        state="r-----",
        managed=False,
        memory_mib=memory,
        maxmem_mib=memory,
        vcpus=count,
        maxvcpus=count,
        cpu_time_s=round(times.total, 2),
        created_at=times.booted_at,
        started_at=times.booted_at,
        engine="host",
    )


def dom0_vcpus(*, proc: Path = PROC) -> list[api.Vcpu]:
    """Domain-0 has each online CPU of the host as a VCPU that never moves."""
    return [
        api.Vcpu(number=number, online=True, state="r--", cpu=number, time_s=round(seconds, 2))
        for number, seconds in sorted(read_times(proc).by_cpu.items())
    ]


@functools.cache
def read_cpus(proc: Path = PROC, sys: Path = SYS) -> Cpus:
    """Model, speed and abilities. Read once: on a big host the kernel takes milliseconds to write /proc/cpuinfo."""
    first = _read(proc / "cpuinfo").partition("\n\n")[0]
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}
    cores = int(facts.get("cpu cores") or 1)
    siblings = int(facts.get("siblings") or cores)
    return Cpus(
        model=facts.get("model name", ""),
        mhz=float(facts.get("cpu MHz") or 0),
        cores_per_socket=cores,
        threads_per_core=max(siblings // cores, 1),
        virt_caps=_virt_caps(set(facts.get("flags", "").split()), sys),
    )


def read_memory(proc: Path = PROC) -> dict[str, int]:
    """/proc/meminfo, in MiB."""
    found = re.findall(r"^(\w+):\s+(\d+) kB$", _read(proc / "meminfo"), re.MULTILINE)
    return {key: int(value) // 1024 for key, value in found}


def read_times(proc: Path = PROC) -> CpuTimes:
    """/proc/stat: the time Domain-0 has had on each CPU, guests' own left out."""
    tick = os.sysconf("SC_CLK_TCK")
    by_cpu: dict[int, float] = {}
    booted_at = 0.0
    for line in _read(proc / "stat").splitlines():
        name, *values = line.split()
        if name == "btime":
            booted_at = float(values[0])
        elif name.startswith("cpu") and name != "cpu":
            ticks = [int(value) for value in values] + [0] * 10
            busy = sum(ticks[column] for column in _BUSY) - sum(ticks[column] for column in _GUEST)
            by_cpu[int(name[3:])] = max(busy, 0) / tick
    return CpuTimes(by_cpu, booted_at)


def _virt_caps(flags: set[str], sys: Path) -> str:
    """In the words of ``xl info``: hvm (vmx or svm), hap (nested paging), hvm_directio (an IOMMU)."""
    has = {
        "hvm": bool(flags & {"vmx", "svm"}),
        "hap": bool(flags & {"ept", "npt"}),
        "hvm_directio": next((sys / "kernel/iommu_groups").glob("*"), None) is not None,
    }
    return " ".join(word for word, there in has.items() if there)


def _read_number(path: Path) -> int:
    text = _read(path).strip()
    return int(text) if text.isdigit() else 0


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # a container may hide it
        return ""

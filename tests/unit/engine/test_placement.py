"""Which CPUs a domain's threads get: by description and host, and from the real kernel."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyxen.config.model import DomainConfig
from pyxen.engine.placement import ONE_THREAD, Placement, affinity, meant, place, resolve
from pyxen.engine.process import spawn
from pyxen.engine.threads import vcpu_threads
from pyxen.engine.topology import Cpu, Node, Topology, read_topology
from pyxen.errors import InvalidRequest

HOST = Topology(
    {cpu: Cpu(socket=cpu // 4, core=cpu // 2, node=cpu // 4) for cpu in range(8)},
    {0: Node(frozenset(range(4))), 1: Node(frozenset(range(4, 8)))},
)


def of(*numbers: int) -> frozenset[int]:
    return frozenset(numbers)


def config(*cpus: str, vcpus: int = 2, maxvcpus: int | None = None) -> DomainConfig:
    return DomainConfig(name="web", vcpus=vcpus, maxvcpus=maxvcpus, cpus=cpus)


def test_nothing_said_is_nothing_done() -> None:
    placement = resolve(config(), HOST, None)
    assert placement.free and placement.of(0) is None and placement.of(ONE_THREAD) is None


def test_one_list_is_for_all_and_several_are_for_one_each() -> None:
    assert resolve(config("0-1", maxvcpus=3), HOST, None).vcpus == (of(0, 1),) * 3
    assert resolve(config("0", "node:1", maxvcpus=3), HOST, None).vcpus == (of(0), of(4, 5, 6, 7), None)
    assert resolve(config("0", "1", "2"), HOST, None).vcpus == (of(0), of(1))


def test_a_pool_bounds_every_thread() -> None:
    placement = resolve(config("0-4", "0"), HOST, of(4, 5))
    assert placement == Placement((of(4), of(4, 5)), of(4, 5), astray=(1,))
    assert resolve(config(), HOST, of(4, 5)) == Placement((of(4, 5),) * 2, of(4, 5))


def test_a_thread_for_all_vcpus_runs_where_any_of_them_may() -> None:
    assert resolve(config("0", "2-3"), HOST, None).of(ONE_THREAD) == of(0, 2, 3)
    assert resolve(config("0", maxvcpus=3), HOST, None).of(ONE_THREAD) == of(0)
    assert resolve(config("0", "1", maxvcpus=3), HOST, None).of(ONE_THREAD) is None


def test_a_list_of_cpus_that_are_not_there_is_refused() -> None:
    assert meant("6-63", HOST) == of(6, 7)
    with pytest.raises(InvalidRequest, match=r"Cannot pin vcpu: 1 to cpu: \[8\] - this host has none") as caught:
        resolve(config("0", "8"), HOST, None)
    assert caught.value.hint == "It has the CPUs 0-7; see: xm info -n"


def test_a_hosts_nodes(tmp_path: Path) -> None:
    system = tmp_path / "devices/system"
    for path, text in {
        "cpu/online": "0-3,6-7\n",
        "node/node0/cpulist": "0-3\n",
        "node/node0/distance": "10 21\n",
        "node/node0/meminfo": "Node 0 MemTotal:  2097152 kB\nNode 0 MemFree:  1048576 kB\n",
        "node/node1/cpulist": "4-7\n",
        "node/node1/distance": "21 10\n",
        "cpu/cpu6/topology/physical_package_id": "1\n",
        "cpu/cpu6/topology/core_id": "2\n",
    }.items():
        (system / path).parent.mkdir(parents=True, exist_ok=True)
        (system / path).write_text(text)
    host = read_topology(tmp_path)
    assert host.nodes == {0: Node(of(0, 1, 2, 3), 2048, 1024, (10, 21)), 1: Node(of(6, 7), 0, 0, (21, 10))}
    assert list(host.cpus) == [0, 1, 2, 3, 6, 7]
    assert host.cpus[6] == Cpu(socket=1, core=2, node=1)
    assert host.nodes_of([2, 3]) == of(0) and host.nodes_of([3, 6]) == of(0, 1)


def test_a_host_that_shows_nothing_has_one_node(tmp_path: Path) -> None:
    assert read_topology(tmp_path) == Topology({0: Cpu(0, 0, 0)}, {0: Node(of(0))})


def test_this_host_has_what_the_process_may_use() -> None:
    host = read_topology()
    assert os.sched_getaffinity(0) <= host.cpus.keys()
    assert frozenset().union(*host.cpus_of_nodes.values()) == host.cpus.keys()


_THREADS = """
import ctypes, sys, threading, time
libc = ctypes.CDLL(None)
ready = threading.Barrier(len(sys.argv[1:]) + 1)
def run(name):
    libc.prctl(15, name.encode(), 0, 0, 0)
    ready.wait()
    time.sleep(600)
for name in sys.argv[1:]:
    threading.Thread(target=run, args=(name,), daemon=True).start()
ready.wait()
print("ready", flush=True)
time.sleep(600)
"""


@pytest.fixture
def process(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[int]:
    """A process with threads of these names."""
    out = tmp_path / "out"
    pid = spawn([sys.executable, "-I", "-c", _THREADS, *request.param], stderr=out)
    try:
        while not out.exists() or "ready" not in out.read_text():
            assert not out.exists() or "Error" not in out.read_text(), out.read_text()
            asyncio.run(asyncio.sleep(0.01))
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.mark.parametrize("process", [["CPU 0/KVM", "CPU 1/KVM", "worker"]], indirect=True)
def test_the_kernel_is_told_of_each_thread(process: int) -> None:
    mine = sorted(os.sched_getaffinity(0))
    first, last = of(mine[0]), of(mine[-1])
    threads = vcpu_threads(process)
    assert sorted(threads) == [0, 1]
    place(process, threads, Placement((first, last), frozenset(mine)))
    assert [affinity(threads[number]) for number in (0, 1)] == [first, last]
    assert affinity(process) == frozenset(mine)
    place(process, threads, Placement((), last))
    tasks = {int(task.name) for task in Path(f"/proc/{process}/task").iterdir()}
    assert {affinity(task) for task in tasks} == {last}
    with pytest.raises(InvalidRequest, match=r"Cannot pin vcpu: 1 to cpu: \[1000\] - Invalid argument"):
        place(process, threads, Placement((first, of(1000)), None))


@pytest.mark.parametrize("process", [["ALL CPUs/TCG"]], indirect=True)
def test_one_thread_for_all(process: int) -> None:
    mine = sorted(os.sched_getaffinity(0))
    threads = vcpu_threads(process)
    assert sorted(threads) == [ONE_THREAD]
    place(process, threads, Placement((of(mine[0]), of(mine[-1]))))
    assert affinity(threads[ONE_THREAD]) == of(mine[0], mine[-1])


def test_a_thread_that_is_gone_is_no_error() -> None:
    gone = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(gone, 0)
    place(gone, {0: gone}, Placement((of(0),), of(0)))
    assert affinity(gone) is None

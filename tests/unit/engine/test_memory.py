"""Where a domain's memory comes from: NUMA nodes, and the host's pool of huge pages."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from pyxen.config.build import load_text
from pyxen.config.model import DomainConfig
from pyxen.engine.hugepages import check_hugepages
from pyxen.engine.numa import nodes_near, preferring
from pyxen.engine.placement import Placement, resolve
from pyxen.engine.process import spawn
from pyxen.engine.topology import Cpu, Node, Topology, read_topology
from pyxen.errors import ConfigError, ResourceExhausted, Unsupported

HOST = Topology(
    {cpu: Cpu(socket=cpu // 4, core=cpu, node=cpu // 4) for cpu in range(12)},
    {node: Node(frozenset(range(4 * node, 4 * node + 4))) for node in range(3)} | {3: Node(frozenset())},
)


def near(*cpus: str, vcpus: int = 2, pool: frozenset[int] | None = None) -> tuple[int, ...]:
    return nodes_near(resolve(DomainConfig(name="web", vcpus=vcpus, cpus=cpus), HOST, pool), HOST)


def test_memory_comes_from_where_the_vcpus_run() -> None:
    assert near() == ()
    assert near("0-3") == (0,)
    assert near("node:2") == (2,)
    assert near("0", "5") == (0, 1)
    assert near("0", vcpus=1, pool=frozenset({8, 9})) == (2,)
    assert near("0", "all") == near("all") == ()
    assert near("0", "1", vcpus=3) == ()  # the third one runs anywhere
    assert near(pool=frozenset({4})) == (1,)


def test_a_host_with_one_node_has_nothing_to_choose() -> None:
    one = Topology(HOST.cpus, {0: Node(frozenset(range(12)))})
    one = Topology({cpu: Cpu(0, cpu, 0) for cpu in range(12)}, one.nodes)
    assert nodes_near(Placement((frozenset({1}),)), one) == ()


@pytest.mark.parametrize("chosen", [True, False])
def test_a_process_is_told_by_who_starts_it(tmp_path: Path, chosen: bool) -> None:
    (node, *_) = (number for number, node in read_topology().nodes.items() if node.memory_mib or number == 0)
    pid = spawn(
        [sys.executable, "-I", "-c", "import time; time.sleep(600)"],
        stderr=tmp_path / "err",
        nodes=[node] if chosen else [],
    )
    try:
        maps = Path(f"/proc/{pid}/numa_maps")
        if not maps.exists():
            pytest.skip("this kernel has no NUMA")
        policies = {line.split()[1] for line in maps.read_text().splitlines()}
        assert policies == ({f"prefer:{node}"} if chosen else {"default"})
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    mine = Path("/proc/self/numa_maps").read_text().splitlines()
    assert {line.split()[1] for line in mine} == {"default"}


@pytest.mark.parametrize("small", [False, True])
def test_a_process_may_have_small_pages_only(tmp_path: Path, small: bool) -> None:
    pid = spawn(["/bin/sleep", "60"], stderr=tmp_path / "stderr", small_pages=small)
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        if "THP_enabled" not in status:
            pytest.skip("this kernel doesn't say")
        assert f"THP_enabled:\t{int(not small)}" in status
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert "THP_enabled:\t1" in Path("/proc/self/status").read_text()


def test_a_node_that_is_not_there_is_no_error() -> None:
    with preferring([900]):
        assert os.getpid()


def pool(folder: Path, **counts: int) -> Path:
    (folder / "hugepages-2048kB").mkdir()
    for name, count in counts.items():
        (folder / "hugepages-2048kB" / f"{name}_hugepages").write_text(f"{count}\n")
    return folder


def test_the_pool_must_have_enough_pages(tmp_path: Path) -> None:
    web = DomainConfig(name="web", memory=64, maxmem=128, hugepages="2m")
    with pytest.raises(Unsupported, match="no huge pages of 2M"):
        check_hugepages(web, tmp_path)
    check_hugepages(DomainConfig(name="web"), tmp_path)
    check_hugepages(web, pool(tmp_path, nr=100, free=70, resv=6))
    (tmp_path / "hugepages-2048kB/resv_hugepages").write_text("7\n")
    with pytest.raises(ResourceExhausted, match="'web' needs 64 huge pages of 2M, the host has 63 left") as caught:
        check_hugepages(web, tmp_path)
    assert caught.value.hint == f"Make more: echo 101 > {tmp_path}/hugepages-2048kB/nr_hugepages"
    (tmp_path / "hugepages-2048kB/nr_overcommit_hugepages").write_text("1\n")
    check_hugepages(web, tmp_path)


def test_memory_is_a_whole_number_of_pages() -> None:
    load_text("image = 'tiny'; memory = 2048; hugepages = '1G'", "x.cfg")
    with pytest.raises(ConfigError, match="1500 MiB of memory are no whole number of huge pages of 1024 MiB"):
        load_text("image = 'tiny'; memory = 1500; hugepages = '1g'", "x.cfg")
    with pytest.raises(ConfigError, match="hugepages must be 2m or 1g, not '4k'"):
        load_text("image = 'tiny'; hugepages = '4k'", "x.cfg")

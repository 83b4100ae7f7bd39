"""The host's CPUs and NUMA nodes, as the kernel shows them in /sys/devices/system."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from pyxen.config.cpulist import read_ranges

SYS = Path("/sys")


@dataclass(frozen=True, slots=True)
class Cpu:
    """Where a CPU is."""

    socket: int
    core: int
    node: int


@dataclass(frozen=True, slots=True)
class Node:
    """A NUMA node."""

    cpus: frozenset[int]
    memory_mib: int = 0
    free_mib: int = 0
    distances: tuple[int, ...] = ()
    """To the nodes, in the order of their numbers; 10 is the node itself."""


@dataclass(frozen=True, slots=True)
class Topology:
    """The CPUs that are online, and the nodes."""

    cpus: Mapping[int, Cpu]
    nodes: Mapping[int, Node]

    @property
    def cpus_of_nodes(self) -> dict[int, frozenset[int]]:
        return {number: node.cpus for number, node in self.nodes.items()}

    def nodes_of(self, cpus: Collection[int]) -> frozenset[int]:
        """The nodes that these CPUs are in."""
        return frozenset(self.cpus[cpu].node for cpu in cpus if cpu in self.cpus)


def read_topology(sys: Path = SYS) -> Topology:
    """As it is now; where /sys doesn't say, one node with all CPUs, each a core of its own."""
    folder = sys / "devices/system"
    online = _read_set(folder / "cpu/online") or frozenset({0})
    nodes = {
        int(path.name[4:]): _read_node(path, online)
        for path in (folder / "node").glob("node[0-9]*")
        if path.name[4:].isdigit()
    }
    nodes = dict(sorted(nodes.items())) or {0: Node(online)}
    node_of = {cpu: number for number, node in nodes.items() for cpu in node.cpus}
    cpus = {
        cpu: Cpu(
            socket=_read_number(folder / f"cpu/cpu{cpu}/topology/physical_package_id", 0),
            core=_read_number(folder / f"cpu/cpu{cpu}/topology/core_id", cpu),
            node=node_of.get(cpu, 0),
        )
        for cpu in sorted(online)
    }
    return Topology(cpus, nodes)


def _read_node(path: Path, online: frozenset[int]) -> Node:
    memory = dict(re.findall(r"(MemTotal|MemFree):\s+(\d+) kB", _read(path / "meminfo")))
    return Node(
        cpus=_read_set(path / "cpulist") & online,
        memory_mib=int(memory.get("MemTotal", 0)) // 1024,
        free_mib=int(memory.get("MemFree", 0)) // 1024,
        distances=tuple(int(word) for word in _read(path / "distance").split() if word.isdigit()),
    )


def _read_set(path: Path) -> frozenset[int]:
    try:
        return read_ranges(_read(path))
    except ValueError:
        return frozenset()


def _read_number(path: Path, default: int) -> int:
    text = _read(path).strip()
    return int(text) if text.isdigit() else default


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""

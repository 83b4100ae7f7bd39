"""Where a domain's threads may run: what its description says of CPUs, for this host, and how the kernel is told."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from pyxen.config.cpulist import expand, ranges
from pyxen.config.model import DomainConfig
from pyxen.engine.topology import Topology
from pyxen.errors import InvalidRequest

ONE_THREAD = -1
"""Stands in place of a VCPU's number for a thread that runs all VCPUs in turn."""


@dataclass(frozen=True, slots=True)
class Placement:
    """CPUs of this host. None: wherever it may run now."""

    vcpus: tuple[frozenset[int] | None, ...] = ()
    """Of each VCPU that the domain can have."""
    others: frozenset[int] | None = None
    """Of the process's other threads."""
    astray: tuple[int, ...] = ()
    """VCPUs that have the whole pool, since the pool has none of the CPUs that they were pinned to."""

    @property
    def free(self) -> bool:
        """Is nothing asked for?"""
        return self.others is None and not any(self.vcpus)

    def of(self, vcpu: int) -> frozenset[int] | None:
        """Where a VCPU may run. ``ONE_THREAD``: wherever any of them may."""
        if vcpu != ONE_THREAD:
            return self.vcpus[vcpu] if vcpu < len(self.vcpus) else self.others
        known = [cpus for cpus in self.vcpus if cpus is not None]
        return frozenset().union(*known) if known and len(known) == len(self.vcpus) else self.others


def resolve(config: DomainConfig, host: Topology, pool: frozenset[int] | None) -> Placement:
    """What the description means on this ``host``, in a ``pool`` of its CPUs (None: all).

    A list of which the pool has no CPU leaves the VCPU the whole pool, as when a domain moves to another pool in Xen.
    Raises InvalidRequest for a list of which the host has none.
    """
    count = max(config.vcpus, config.maxvcpus or 0)
    lists = config.cpus * count if len(config.cpus) == 1 else config.cpus[:count]
    vcpus: list[frozenset[int] | None] = []
    astray: list[int] = []
    for number, text in enumerate(lists):
        cpus = meant(text, host, number)
        if pool is not None and not cpus & pool:
            astray.append(number)
        vcpus.append(cpus if pool is None else cpus & pool or pool)
    vcpus += [pool] * (count - len(vcpus))
    return Placement(tuple(vcpus), pool, tuple(astray))


def meant(text: str, host: Topology, vcpu: int | None = None) -> frozenset[int]:
    """The host's CPUs that a list names. Raises InvalidRequest if it has none of them."""
    cpus = expand(text, host.cpus, host.cpus_of_nodes)
    if not cpus:
        which = "" if vcpu is None else f"vcpu: {vcpu} "
        raise InvalidRequest(
            f"Cannot pin {which}to cpu: [{text}] - this host has none of them",
            hint=f"It has the CPUs {ranges(host.cpus)}; see: xm info -n",
        )
    return cpus


def place(pid: int, threads: Mapping[int, int], placement: Placement) -> None:
    """Tell the kernel; ``threads`` are the VCPUs' thread ids by number. Raises InvalidRequest if it refuses.

    Threads that are made later run where the one that makes them does.
    """
    _place_others(pid, threads.values(), placement.others)
    for number, thread in threads.items():
        if (cpus := placement.of(number)) is not None:
            try:
                os.sched_setaffinity(thread, cpus)
            except ProcessLookupError:
                pass
            except OSError as error:
                which = "all" if number == ONE_THREAD else str(number)
                raise InvalidRequest(
                    f"Cannot pin vcpu: {which} to cpu: [{ranges(cpus)}] - {error.strerror}",
                    hint=f"xend's own processes may run on: {ranges(os.sched_getaffinity(0))}",
                ) from None


def place_helper(pid: int, placement: Placement) -> None:
    """Have a process that helps a domain's run where the domain's threads do that are no VCPUs."""
    _place_others(pid, (), placement.others)


def _place_others(pid: int, vcpus: Collection[int], cpus: frozenset[int] | None) -> None:
    if cpus is None:
        return
    done: set[int] = set()
    # A thread that is made meanwhile may have got its maker's old CPUs: look again until there is no new one.
    while fresh := _tasks(pid) - set(vcpus) - done:
        for thread in fresh:
            with contextlib.suppress(OSError):
                os.sched_setaffinity(thread, cpus)
        done |= fresh


def _tasks(pid: int) -> set[int]:
    try:
        return {int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()}
    except OSError:
        return set()


def affinity(thread: int) -> frozenset[int] | None:
    """Where the kernel lets a thread run; None when it is gone."""
    try:
        return frozenset(os.sched_getaffinity(thread))
    except OSError:
        return None

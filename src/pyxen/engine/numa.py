"""Memory from certain NUMA nodes: set_mempolicy(2), which a process hands on to those that it starts."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Collection, Iterator
from typing import Final

from pyxen.engine.placement import Placement
from pyxen.engine.topology import Topology

_SET_MEMPOLICY: Final = 238  # x86-64
_DEFAULT, _PREFERRED, _PREFERRED_MANY = 0, 1, 5  # linux/mempolicy.h
_WORD_BITS: Final = 64


def nodes_near(placement: Placement, host: Topology) -> tuple[int, ...]:
    """The nodes whose memory is near to all that a domain may run on; empty where that is every node with CPUs."""
    threads = {cpus if cpus is not None else placement.others for cpus in placement.vcpus}
    known = [cpus for cpus in threads if cpus is not None]
    if not known or len(known) < len(threads):
        return ()
    nodes = host.nodes_of(frozenset().union(*known))
    return () if nodes == host.nodes_of(host.cpus) else tuple(sorted(nodes))


@contextlib.contextmanager
def preferring(nodes: Collection[int]) -> Iterator[None]:
    """What this thread starts meanwhile takes memory from ``nodes`` as long as they have some; of any if empty.

    A kernel that can't do that leaves it be.
    """
    if not nodes or not _set(_PREFERRED_MANY if len(nodes) > 1 else _PREFERRED, nodes):
        yield
        return
    try:
        yield
    finally:
        _set(_DEFAULT, ())


def _set(mode: int, nodes: Collection[int]) -> bool:
    words = (ctypes.c_ulong * (max(nodes, default=0) // _WORD_BITS + 1))()
    for node in nodes:
        words[node // _WORD_BITS] |= 1 << node % _WORD_BITS
    mask, bits = (words, len(words) * _WORD_BITS + 1) if nodes else (None, 0)
    if os.uname().machine != "x86_64":
        return False
    answer: int = ctypes.CDLL(None, use_errno=True).syscall(
        ctypes.c_long(_SET_MEMPOLICY), ctypes.c_long(mode), mask, ctypes.c_ulong(bits)
    )
    return answer == 0

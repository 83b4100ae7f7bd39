"""Lists of the host's CPUs as xm and xl write them: ``0-3,5,^1``, ``all``, ``nodes:0-1,^node:1``.

Terms are joined with commas. A number or range names CPUs, ``node:N`` and ``nodes:N-M`` those of NUMA nodes, ``all``
every one; ``^`` before a term takes its CPUs out again. Terms count from left to right; a list of nothing but ``^``
terms begins with all.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import NamedTuple

from pyxen.config.words import shown
from pyxen.errors import ConfigError

ALL = "all"
_TERM = re.compile(r"(\^?)(?:(all)|(nodes?:)?(\d{1,5})(?:-(\d{1,5}))?)", re.ASCII)
_HINT = 'write it like "0-3,^1", "all" or "nodes:0"'


class Term(NamedTuple):
    """One part of a list. ``low`` to ``high`` count CPUs, or ``nodes``; both are None for all."""

    without: bool
    nodes: bool
    low: int | None
    high: int | None


def parse(text: str, key: str = "cpus") -> list[Term]:
    """The terms of a list. Raises ConfigError, about ``key``."""
    terms = []
    for word in text.split(","):
        found = _TERM.fullmatch(word)
        if found is None:
            raise ConfigError(f"{key}: {shown(word)} in {shown(text)} is no CPU or range of CPUs", key=key, hint=_HINT)
        without, everything, nodes, low, high = found.groups()
        if everything:
            terms.append(Term(bool(without), False, None, None))
            continue
        first, last = int(low), int(high or low)
        if last < first:
            raise ConfigError(f"{key}: {shown(word)} ends before it begins", key=key, hint=_HINT)
        terms.append(Term(bool(without), bool(nodes), first, last))
    return terms


def expand(text: str, cpus: Collection[int], nodes: Mapping[int, Collection[int]], key: str = "cpus") -> frozenset[int]:
    """Those of the host's ``cpus`` that the list means; what the host lacks is left out. Raises ConfigError."""
    terms = parse(text, key)
    chosen = set(cpus) if all(term.without for term in terms) else set()
    for term in terms:
        if term.low is None or term.high is None:
            meant = set(cpus)
        elif term.nodes:
            meant = {cpu for node, own in nodes.items() if term.low <= node <= term.high for cpu in own}
        else:
            meant = {cpu for cpu in cpus if term.low <= cpu <= term.high}
        chosen = chosen - meant if term.without else chosen | meant
    return frozenset(chosen & set(cpus))


def ranges(cpus: Collection[int]) -> str:
    """``0-1,3``; empty for none."""
    found: list[list[int]] = []
    for cpu in sorted(set(cpus)):
        if found and found[-1][1] == cpu - 1:
            found[-1][1] = cpu
        else:
            found.append([cpu, cpu])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in found)


def read_ranges(text: str) -> frozenset[int]:
    """What the kernel writes in that form. Raises ValueError."""
    found: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        low, _, high = part.partition("-")
        found.update(range(int(low), int(high or low) + 1))
    return frozenset(found)

"""A domain's trace for people: a line for each record, and a table of what took how long."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import click

from pyxen.api import TraceRecord

HEADER = f"{'Time(s)':>12} {'VCPU':>4} {'Cost(us)':>10} What"
_COLOURS = {
    "hypercall": "cyan",
    "port": "magenta",
    "mmio": "magenta",
    "msr": "magenta",
    "exit": "magenta",
    "event": "green",
    "timer": "blue",
    "xenstore": "yellow",
}
_QUOTED = frozenset({"payload", "text", "token"})
Paint = Callable[..., str]


def plain(text: str, **style: Any) -> str:
    return text


def label(record: TraceRecord) -> str:
    """What it is, in a word: ``sched_op.poll``, ``port.in``, ``xenstore.read``."""
    if record.kind == "hypercall":
        return f"{record.name}.{record.op}" if record.op else record.name
    return f"{record.kind}.{record.name}"


def line(record: TraceRecord, paint: Paint = plain) -> str:
    """One record in columns; ``paint`` is click.style or ``plain``."""
    if record.kind == "lost":
        return paint(f"{'':>28} … {record.count} lost", fg="yellow")
    vcpu = "" if record.vcpu is None else str(record.vcpu)
    cost = "" if record.us is None else f"{record.us:.1f}"
    parts = [paint(label(record), fg=_COLOURS.get(record.kind)), f"({_values(record.args, record.kind)})"]
    if record.out:
        parts.append(f" -> {_values(record.out, record.kind)}")
    if record.error is not None:
        parts.append(paint(f" = {'-' if record.result is not None else ''}{record.error}", fg="red"))
    elif record.result is not None:
        parts.append(f" = {record.result}")
    return f"{paint(f'{record.time_s:>12.6f}', dim=True)} {vcpu:>4} {paint(f'{cost:>10}', dim=True)} {''.join(parts)}"


def _values(values: dict[str, Any], kind: str) -> str:
    return ", ".join(f"{key}={_value(key, value, kind)}" for key, value in values.items())


def _value(key: str, value: Any, kind: str) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(str, value))}]"
    if key in _QUOTED or (kind == "xenstore" and key == "value"):
        return f'"{value}"'
    return str(value)


@dataclass(frozen=True, slots=True)
class Cost:
    """What all records with one label have cost."""

    what: str
    count: int
    total_us: float
    mean_us: float
    max_us: float
    share: float
    """Of the time that all of them took, from 0 to 1."""


class Summary:
    """Counts records, and what they cost."""

    def __init__(self) -> None:
        self.lost = 0
        self._seen: dict[str, tuple[int, float, float]] = {}

    def add(self, record: TraceRecord) -> None:
        if record.kind == "lost":
            self.lost += record.count
        elif record.kind != "end":
            count, total, most = self._seen.get(label(record), (0, 0.0, 0.0))
            us = record.us or 0.0
            self._seen[label(record)] = count + 1, total + us, max(most, us)

    def costs(self) -> list[Cost]:
        """The dearest first."""
        everything = sum(total for _, total, _ in self._seen.values())
        found = [
            Cost(what, count, round(total, 1), round(total / count, 1), most, total / everything if everything else 0.0)
            for what, (count, total, most) in self._seen.items()
        ]
        return sorted(found, key=lambda cost: (-cost.total_us, -cost.count, cost.what))

    def lines(self) -> Iterator[str]:
        """As a table."""
        costs = self.costs()
        width = max([24, *(len(cost.what) for cost in costs)])
        yield f"{'What':<{width}} {'Count':>8} {'Total(us)':>12} {'Mean(us)':>10} {'Max(us)':>10} {'Share':>6}"
        for cost in costs:
            yield (
                f"{cost.what:<{width}} {cost.count:>8} {cost.total_us:>12.1f} {cost.mean_us:>10.1f} "
                f"{cost.max_us:>10.1f} {cost.share:>6.1%}"
            )
        if self.lost:
            yield f"{self.lost} more came too fast to be seen, and are not counted."


def painter(coloured: bool) -> Paint:
    """How to colour lines."""
    return click.style if coloured else plain

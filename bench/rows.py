"""A benchmark's result: rows of what was seen and what is aimed at."""

from __future__ import annotations

import statistics
from dataclasses import dataclass


@dataclass
class Row:
    what: str
    measured: str
    aim: str


def spread(values: list[float], unit: str = "s", scale: float = 1.0) -> str:
    """Median, with lowest and highest."""
    low, middle, high = min(values) * scale, statistics.median(values) * scale, max(values) * scale
    return f"{middle:.3g} {unit} ({low:.3g}-{high:.3g})"


def ratio(ours: list[float], theirs: list[float]) -> str:
    return f"{statistics.median(ours) / statistics.median(theirs):.2f}"

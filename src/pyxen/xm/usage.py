"""What domains use, from two looks at their CPU time."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from pyxen.client import Client

if TYPE_CHECKING:
    from rich.table import Table


class Row(NamedTuple):
    """One running domain."""

    name: str
    domid: int
    state: str
    cpu_time_s: float
    cpu_percent: float
    """Of one host CPU, since the sample before."""
    memory_mib: int
    memory_percent: float
    """Of the host's memory."""
    vcpus: int


class Meter:
    """Asks xend again and again, and remembers the last answer."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._total_mib = client.host().total_memory_mib
        self._before: dict[tuple[str, int], float] = {}
        self._at = 0.0

    def sample(self) -> list[Row]:
        """The running domains now; CPU use is 0 for one that was not there in the sample before."""
        domains, now = self._client.domains(), time.monotonic()
        elapsed = now - self._at
        rows, times = [], {}
        for each in domains:
            if each.domid is None:
                continue
            life = (each.uuid, each.domid)
            times[life] = each.cpu_time_s
            used = max(0.0, each.cpu_time_s - self._before.get(life, each.cpu_time_s))
            rows.append(
                Row(
                    each.name,
                    each.domid,
                    each.state,
                    each.cpu_time_s,
                    round(100 * used / elapsed, 1),
                    each.memory_mib,
                    round(100 * each.memory_mib / self._total_mib, 1) if self._total_mib else 0.0,
                    each.vcpus,
                )
            )
        self._before, self._at = times, now
        return rows


TITLES = ("NAME", "ID", "STATE", "CPU(sec)", "CPU(%)", "MEM(MiB)", "MEM(%)", "VCPUS")


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.name,
        str(row.domid),
        row.state,
        f"{row.cpu_time_s:.1f}",
        f"{row.cpu_percent:.1f}",
        str(row.memory_mib),
        f"{row.memory_percent:.1f}",
        str(row.vcpus),
    )


def table(rows: Iterable[Row]) -> Iterator[str]:
    """Plain lines, for pipes."""
    for name, *rest in (TITLES, *map(_cells, rows)):
        yield f"{name:<32} {rest[0]:>5} {rest[1]:>6} {rest[2]:>10} {rest[3]:>7} {rest[4]:>9} {rest[5]:>7} {rest[6]:>5}"


def rich_table(rows: Iterable[Row]) -> Table:
    """The same for a terminal."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    made = Table(box=SIMPLE_HEAD, caption="q leaves", caption_justify="left")
    for number, title in enumerate(TITLES):
        made.add_column(title, justify="left" if number in (0, 2) else "right")
    for row in rows:
        made.add_row(*map(Text, _cells(row)))
    return made

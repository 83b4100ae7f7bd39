"""Runs a target for a number of inputs: counts, times, bounds its memory, says how to replay what it found."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

MOST_GROWTH = 192 << 20
"""Bytes by which the process may grow after its first episodes, whatever the guests do."""
_WARM = 8
_PAGE = os.sysconf("SC_PAGESIZE")


class Target(Protocol):
    """One episode: a guest, and what it attacks."""

    outcomes: Counter[str]
    """What became of the inputs; each run must see those of ``wanted``, or its attack never got in."""

    def step(self) -> int:
        """Make an input or a few; how many. An exception is a fault."""
        ...

    def check(self) -> None:
        """Nothing has changed that must not. Raises AssertionError."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Kind:
    """What can be attacked: ``make`` begins an episode of ``length`` inputs."""

    make: Callable[[random.Random], Target]
    length: int
    wanted: tuple[str, ...]
    """Outcomes that come up in any run worth its name."""


class Found(AssertionError):
    """A fault, with the command that shows it again."""


@dataclass(slots=True)
class Report:
    """What a run did. ``slowest`` is the most time on the CPU that one step took: told, never judged."""

    name: str
    seed: str
    inputs: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    slowest_at: str = ""
    growth: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        rate = self.inputs / self.seconds if self.seconds else 0.0
        told = ", ".join(f"{name} {count}" for name, count in self.outcomes.most_common(12))
        return (
            f"{self.name}: seed {self.seed}: {self.inputs} inputs in {self.seconds:.1f} s ({rate:.0f}/s), no fault; "
            f"slowest {self.slowest * 1000:.1f} ms ({self.slowest_at}); grew by {self.growth >> 10} KiB\n  {told}"
        )


def run(name: str, kind: Kind, count: int, seed: str, *, episode: int = 0) -> Report:
    """Make ``count`` inputs from ``episode`` on. Raises Found."""
    report = Report(name, seed)
    began = time.perf_counter()
    base = first = None
    while report.inputs < count:
        done = _episode(name, kind, min(kind.length, count - report.inputs), seed, episode, report)
        report.inputs += done
        episode += 1
        first = episode if first is None else first
        if episode - first == _WARM:
            base = _resident()
        if base is not None:
            report.growth = max(report.growth, _resident() - base)
            if report.growth > MOST_GROWTH:
                raise Found(f"{name}: seed {seed}, up to episode {episode}: grew by {report.growth >> 20} MiB")
    report.seconds = time.perf_counter() - began
    return report


def _episode(name: str, kind: Kind, count: int, seed: str, episode: int, report: Report) -> int:
    done = 0
    try:
        target = kind.make(random.Random(f"{name}/{seed}/{episode}"))
        try:
            while done < count:
                began = time.thread_time()
                done += target.step()
                took = time.thread_time() - began
                if took > report.slowest:
                    report.slowest, report.slowest_at = took, f"episode {episode}, input {done}"
            target.check()
        finally:
            target.close()
    except Exception as error:
        raise Found(
            f"{name}: seed {seed}, episode {episode}, input {done}: {type(error).__name__}: {error}\n"
            f"Again: python -m tests.fuzz {name} {count} {seed} --episode {episode}"
        ) from error
    report.outcomes += target.outcomes
    return done


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE

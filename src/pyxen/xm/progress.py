"""How a long job is going: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

import click

from pyxen.api import Progress
from pyxen.xm.output import coloured


class _Show(Protocol):
    def __call__(self, step: Progress) -> None: ...


def show(steps: Iterable[Progress], *, quiet: bool = False) -> Progress | None:
    """Follow ``steps`` to their end; returns the last of them."""
    import sys

    if quiet:
        return _follow(steps, lambda step: None)
    if coloured(sys.stderr):
        with _bar() as update:
            return _follow(steps, update)
    return _follow(steps, _Lines())


def _follow(steps: Iterable[Progress], update: _Show) -> Progress | None:
    step = None
    for step in steps:
        update(step)
    return step


class _Lines:
    """Each new step once, on the standard error."""

    def __init__(self) -> None:
        self._last = ""

    def __call__(self, step: Progress) -> None:
        if step.step != self._last and not step.done:
            click.echo(step.step, err=True)
            self._last = step.step


@contextmanager
def _bar() -> Iterator[_Show]:
    from rich.console import Console
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("", total=None)

        def update(step: Progress) -> None:
            if step.fraction is None:
                bars.update(task, description=step.step, total=None)
            else:
                bars.update(task, description=step.step, total=1.0, completed=step.fraction)

        yield update

"""Text and JSON on the standard output, warnings on the standard error."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any, TextIO

import click

_STATE_COLOURS = {"c": "red", "d": "red", "s": "magenta", "p": "yellow", "r": "green", "b": "cyan"}


def echo_json(value: Any) -> None:
    """One JSON document; API bodies keep their names."""
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2))


def echo_lines(lines: Iterable[str]) -> None:
    text = "\n".join(lines)
    if text:
        click.echo(text)


def warn(warnings: Iterable[str]) -> None:
    for warning in warnings:
        click.echo(f"Warning: {warning}", err=True)


def coloured(stream: TextIO | None = None) -> bool:
    """Colour is for terminals whose user has not asked for none."""
    stream = stream or sys.stdout
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def colour_state(padded: str) -> str:
    """A state such as ``-b----`` (with its padding) in the colour of its most telling letter."""
    for letter, colour in _STATE_COLOURS.items():
        if letter in padded:
            return click.style(padded, fg=colour)
    return padded

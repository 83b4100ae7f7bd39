"""Finding and reading the description of a domain that a command line names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pyxen.errors import NotFound
from pyxen.xm.output import echo_json, warn

if TYPE_CHECKING:
    from pyxen.config.build import Loaded
    from pyxen.config.model import DomainConfig

SEARCH_PATH = ".:/etc/xen"
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")


def split(words: tuple[str, ...]) -> tuple[str | None, list[str]]:
    """The file's name, if there is one, and the ``key=value`` words."""
    files = [word for word in words if not _WORD.match(word)]
    if len(files) > 1:
        raise click.UsageError(
            f"'{files[1]}' is neither key=value nor the only file ('{files[0]}' is one).", click.get_current_context()
        )
    return (files[0] if files else None), [word for word in words if _WORD.match(word)]


def find(name: str, search: str = SEARCH_PATH) -> Path:
    """The literal name, then that name in each folder of ``search``; raises NotFound."""
    folders = [""] + ([] if Path(name).is_absolute() else search.split(":"))
    for folder in folders:
        path = Path(folder) / name
        if path.is_file():
            return path
    tried = " and ".join(folder for folder in folders if folder)
    raise NotFound(f"Unable to open config file: {name}", hint=f"Looked in {tried}" if tried else None)


def load(words: tuple[str, ...], *, search: str = SEARCH_PATH, announce: bool, err: bool = False) -> Loaded:
    """Read what ``words`` say; warnings go to the standard error, and are returned lest they are given again.

    ``announce``: say which file it is, as xm does, on the standard error with ``err``.
    """
    name, overrides = split(words)
    if name is None and not any(word.startswith(("image=", "kernel=", "type=", "builder=")) for word in overrides):
        raise click.UsageError("missing a FILE, or image=… or kernel=….", click.get_current_context())
    from pyxen.config.build import load_file, load_overrides_only

    if name is None:
        loaded = load_overrides_only(overrides)
    else:
        path = find(name, search)
        if announce:
            click.echo(f'Using config file "{path if path.is_absolute() else f"./{path}"}".', err=err)
        loaded = load_file(path, overrides)
    warn(loaded.warnings)
    return loaded


def show(config: DomainConfig, as_json: bool) -> None:
    """Print a description, as a file that says all of it or as JSON."""
    if as_json:
        echo_json(config)
        return
    from pyxen.config.render import render

    click.echo(render(config), nl=False)

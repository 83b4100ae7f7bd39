from __future__ import annotations

from pathlib import Path

import click

from pyxen.errors import ConfigError, PyxenError
from pyxen.xm import description
from pyxen.xm.command import CONTEXT, format_option, subcommand
from pyxen.xm.output import echo_json, echo_lines


@click.group("config", context_settings=CONTEXT)
def command() -> None:
    """Check, show and explain domain configuration files.

    Nothing here needs xend. A file is read, never executed.
    """


@subcommand("check", examples=["xm config check web.cfg", "xm config check /etc/xen/*.cfg"])
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path))
def check(files: tuple[Path, ...]) -> int:
    """Say what is wrong with files, and where.

    Exit status 1 if a file has an error; warnings alone are none.
    """
    from pyxen.config.build import load_file

    bad = 0
    for path in files:
        try:
            loaded = load_file(path)
        except PyxenError as error:
            bad += 1
            _complain(path, error)
            continue
        for warning in loaded.warnings:
            click.echo(f"Warning: {path}: {warning}", err=True)
        click.echo(f"{path}: good")
    return 1 if bad else 0


def _complain(path: Path, error: PyxenError) -> None:
    placed = isinstance(error, ConfigError) and error.source is not None
    click.echo(f"Error: {error}" if placed else f"Error: {path}: {error}", err=True)
    if error.hint:
        click.echo(error.hint, err=True)


@subcommand("show", examples=["xm config show web.cfg", "xm config show web.cfg memory=1024 --format json"])
@click.argument("words", nargs=-1, required=True, metavar="[FILE] [KEY=VALUE]...")
@format_option
def show(words: tuple[str, ...], form: str) -> None:
    """Print a description as xend gets it.

    The result is itself a file that xm create takes.
    """
    description.show(description.load(words, announce=False).config, form == "json")


@subcommand("schema", examples=["xm config schema > domain.schema.json"])
def schema() -> None:
    """Print the JSON schema of a domain's description."""
    from pyxen.config.schema import schema as make

    echo_json(make())


@subcommand("keys", examples=["xm config keys", "xm config keys disk"])
@click.argument("names", nargs=-1, metavar="[KEY]...")
@format_option
def keys(names: tuple[str, ...], form: str) -> None:
    """Explain the keys that a file may have."""
    from pyxen.config.keys import KEYS

    unknown = [name for name in names if name not in KEYS]
    if unknown:
        raise ConfigError(f"there is no key '{unknown[0]}'", hint="All of them: xm config keys")
    chosen = [key for name, key in KEYS.items() if not names or name in names]
    if form == "json":
        echo_json({"keys": [{"name": k.name, "summary": k.summary, "example": k.example} for k in chosen]})
    else:
        echo_lines(f"{key.name:<16} {key.summary}\n{'':<17}{key.example}" for key in chosen)


for _each in (check, show, schema, keys):
    command.add_command(_each)

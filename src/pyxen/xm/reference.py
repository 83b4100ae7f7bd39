"""The reference page of xm, written from the commands themselves."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import click

from pyxen.xm.cli import SECTIONS, cli
from pyxen.xm.command import Command


def reference_markdown() -> str:
    """Every command with its synopsis, options and examples, as Markdown."""
    root = click.Context(cli, info_name="xm", **cli.context_settings)
    lines = ["# xm", "", *_prose(cli), "", *_conventions()]
    for section, names in SECTIONS.items():
        lines += ["", f"## {section}"]
        for name in names:
            found = cli.get_command(root, name)
            assert found is not None
            lines += _command(found, click.Context(found, parent=root, info_name=name, **found.context_settings))
    return "\n".join(lines) + "\n"


def _conventions() -> Iterator[str]:
    yield "| exit status | meaning |"
    yield "| --- | --- |"
    for status, meaning in (
        (0, "done"),
        (1, "an error: `Error: …` and the next step on the standard error"),
        (2, "the call itself is wrong"),
        (3, "there is no such domain"),
        (130, "interrupted by Ctrl-C"),
    ):
        yield f"| {status} | {meaning} |"
    yield ""
    yield "| environment | meaning |"
    yield "| --- | --- |"
    for name, meaning in (
        ("XM_SERVER", "which xend: `unix:///PATH` or `http://127.0.0.1:PORT`; by default this user's"),
        ("XM_TOKEN", "the token for `http://`; by default the one that this user's xend has written"),
        ("XM_FORMAT", "`json`: what `--format` is by default"),
        ("PYXEN_ROOT", "the folder of another xend"),
        ("NO_COLOR", "no colours, whatever the terminal"),
    ):
        yield f"| `{name}` | {meaning} |"


def _command(found: click.Command, ctx: click.Context) -> Iterator[str]:
    yield ""
    yield f"### {ctx.command_path}"
    yield ""
    yield from _prose(found)
    if isinstance(found, click.Group):
        for name in found.list_commands(ctx):
            child = found.get_command(ctx, name)
            assert child is not None
            yield from _command(child, click.Context(child, parent=ctx, info_name=name, **child.context_settings))
        return
    synopsis = " ".join([ctx.command_path, *found.collect_usage_pieces(ctx)])
    yield from ["", "```", synopsis, "```"]
    yield from _options(found, ctx)
    if isinstance(found, Command) and found.examples:
        yield from ["", "```console", *(f"$ {example}" for example in found.examples), "```"]


def _prose(found: click.Command) -> list[str]:
    text = inspect.cleandoc(found.help or "")
    return [line.replace("<", "&lt;").replace("|", "\\|") for line in text.splitlines()]


def _options(found: click.Command, ctx: click.Context) -> Iterator[str]:
    records = [record for each in found.get_params(ctx) if (record := each.get_help_record(ctx)) is not None]
    records = [(names, text) for names, text in records if text and "--help" not in names]
    if not records:
        return
    yield from ["", "| option | meaning |", "| --- | --- |"]
    for names, text in records:
        yield f"| `{names.replace('|', chr(92) + '|')}` | {text.replace('|', chr(92) + '|').strip()} |"

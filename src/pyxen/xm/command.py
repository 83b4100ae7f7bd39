"""What xm's commands have in common: examples in their help, and arguments that several of them take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from pyxen.xm.session import Session

F = TypeVar("F", bound=Callable[..., Any])
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

pass_session = click.make_pass_decorator(Session)


class Command(click.Command):
    """A click command with example calls at the end of its help."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = tuple(examples)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.examples:
            with formatter.section("Examples"):
                for example in self.examples:
                    formatter.write(f"{'':{formatter.current_indent}}{example}\n")


def subcommand(name: str, *, examples: Sequence[str]) -> Callable[[Callable[..., Any]], Command]:
    """Make a function the command ``name``; its docstring is the help."""

    def decorate(function: Callable[..., Any]) -> Command:
        return click.command(name, cls=Command, examples=examples, context_settings=CONTEXT)(function)

    return decorate


def complete_domains(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Names of the domains that xend has; nothing if it does not say so at once."""
    from pyxen.client import Client
    from pyxen.errors import PyxenError

    try:
        with Client(timeout=0.5) as client:
            return [each.name for each in client.domains() if each.name.startswith(incomplete)]
    except PyxenError:
        return []


def domain_argument(name: str = "domain", **options: Any) -> Callable[[F], F]:
    """A domain's name, id or UUID."""
    metavar = options.pop("metavar", name.upper())
    return click.argument(name, metavar=metavar, shell_complete=complete_domains, **options)


def domains_argument(**options: Any) -> Callable[[F], F]:
    """Any number of domains."""
    return domain_argument("domains", nargs=-1, metavar="[DOMAIN]...", **options)


def format_option(function: F) -> F:
    """``--format json|table``, by default what XM_FORMAT says."""
    return click.option(
        "--format",
        "form",
        type=click.Choice(["table", "json"]),
        default="table",
        envvar="XM_FORMAT",
        help="Text for people (the default), or one JSON document with the names of the API. [env: XM_FORMAT]",
    )(function)


class _Mib(click.ParamType[int]):
    """An amount of memory as xl takes it; in MiB."""

    name = "size"

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from pyxen.config.sizes import parse_mib
        from pyxen.errors import ConfigError

        if isinstance(value, int):
            return value
        try:
            size = parse_mib(value)
        except ConfigError as error:
            self.fail(f"{error.message}: {error.hint}" if error.hint else error.message, param, ctx)
        if size < 1:
            self.fail("less than 1 MiB is no size for a domain", param, ctx)
        return size


class _Rate(click.ParamType[int]):
    """A rate as xl takes it; in bytes a second, 0 for none."""

    name = "rate"

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from pyxen.config.sizes import parse_rate
        from pyxen.errors import ConfigError

        if isinstance(value, int):
            return value
        try:
            return 0 if value == "none" else parse_rate(value)
        except ConfigError as error:
            self.fail(f"{error.message}: write 10MB/s, 80Mb/s or none", param, ctx)


def rate_option(name: str, **options: Any) -> Callable[[F], F]:
    """A rate as an option."""
    return click.option(name, type=_Rate(), metavar="RATE", **options)


def rate_argument(function: F) -> F:
    """A rate."""
    return click.argument("rate", type=_Rate(), metavar="RATE")(function)


def size_option(name: str, **options: Any) -> Callable[[F], F]:
    """An amount of memory as an option, in MiB or with a unit."""
    return click.option(name, type=_Mib(), metavar="SIZE", **options)


def size_argument(function: F) -> F:
    """How much memory, in MiB or with a unit."""
    return click.argument("size", type=_Mib(), metavar="SIZE")(function)

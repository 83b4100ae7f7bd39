"""xm as a whole: which command is meant, errors and exit status, help, and what gets imported."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from pyxen.errors import Conflict, OutcomeUnknown, Unavailable
from pyxen.xm.cli import SUMMARIES, UnknownCommand, cli, resolve
from pyxen.xm.command import Command
from pyxen.xm.reference import reference_markdown

from .conftest import Xm
from .fake import FakeClient


def commands() -> Iterator[tuple[str, click.Command]]:
    root = click.Context(cli, info_name="xm", **cli.context_settings)
    for name in SUMMARIES:
        found = cli.get_command(root, name)
        assert found is not None
        yield name, found
        if isinstance(found, click.Group):
            for child, inner in found.commands.items():
                yield f"{name} {child}", inner


ALL = dict(commands())
LISTINGS = {
    "list",
    "vcpu-list",
    "uptime",
    "info",
    "top",
    "events",
    "version",
    "image list",
    "config keys",
    "pci-list",
    "usb-list",
}


@pytest.mark.parametrize("name", ALL)
def test_every_command_explains_itself(name: str, xm: Xm) -> None:
    found = ALL[name]
    assert found.help
    done = xm(*name.split(), "--help")
    assert done.status == 0
    assert done.out.startswith(f"Usage: xm {name}")
    assert max(map(len, done.out.splitlines())) <= 100
    if not isinstance(found, click.Group):
        assert isinstance(found, Command)
        assert found.examples
        assert all(f"xm {name}" in example for example in found.examples)
    for parameter in found.params:
        if isinstance(parameter, click.Option) and parameter.name != "delay":
            assert parameter.help, parameter.name


@pytest.mark.parametrize("name", SUMMARIES)
def test_the_summary_is_the_help_s_first_sentence(name: str) -> None:
    assert (ALL[name].help or "").splitlines()[0] == SUMMARIES[name]


@pytest.mark.parametrize("name", sorted(LISTINGS))
def test_every_listing_has_a_machine_s_format(name: str) -> None:
    assert "--format" in {option for parameter in ALL[name].params for option in parameter.opts}


def test_the_reference_has_every_command() -> None:
    page = reference_markdown()
    for name, found in ALL.items():
        assert f"\n### xm {name}\n" in page
        if isinstance(found, Command):
            assert f"$ {found.examples[0]}\n" in page


@pytest.mark.parametrize(
    ("word", "name"),
    [("usb-add", "usb-attach"), ("li", "list"), ("sh", "shutdown"), ("vcpu-l", "vcpu-list"), ("list", "list")],
)
def test_clear_beginnings_are_enough(word: str, name: str) -> None:
    assert resolve(word) == name


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("lsit", "Did you mean: xm list?"),
        ("re", "It may be reboot or resume or rename"),
        ("l", "What there is: xm help"),
        ("serve", "does not have it yet"),
    ],
)
def test_unclear_commands(word: str, hint: str, xm: Xm) -> None:
    with pytest.raises(UnknownCommand):
        resolve(word)
    done = xm(word)
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith(f"Error: Subcommand {word} not found!\n")
    assert hint in done.err


def test_help(xm: Xm) -> None:
    everything = xm("help").out
    lines = {line.split()[0] for line in everything.splitlines() if line.startswith("  ")}
    assert set(SUMMARIES) <= lines
    assert xm("--help").out == everything
    called = xm("create", "-h")
    assert (called.status, called.err) == (0, "")
    assert xm("help", "create").out == called.out
    assert xm("help", "nothing").status == 2
    assert xm().status == 2
    assert xm("--version").out == "xm 0.1.0\n"


def test_an_unknown_domain(xm: Xm) -> None:
    assert xm("pause", "x") == (3, "", "Error: Domain 'x' does not exist.\nSee what there is: xm list\n")


def test_a_wrong_call(xm: Xm) -> None:
    assert xm("pause") == (
        2,
        "",
        "Error: Missing argument 'DOMAIN'.\nUsage: xm pause [OPTIONS] DOMAIN\nHelp: xm pause --help\n",
    )
    assert xm("list", "--frob").status == 2


@pytest.mark.parametrize(
    ("failure", "status", "err"),
    [
        (Conflict("it is so", hint="Do this"), 1, "Error: it is so\nDo this\n"),
        (Unavailable("xend is away"), 1, "Error: xend is away\n"),
        (OutcomeUnknown("who knows"), 1, "Error: who knows\n"),
        (KeyboardInterrupt(), 130, "Interrupted.\n"),
        (ZeroDivisionError("x / 0"), 1, "Error: internal error: ZeroDivisionError: x / 0\nRun it again"),
    ],
)
def test_errors(xm: Xm, fake: FakeClient, failure: Exception, status: int, err: str) -> None:
    fake.failure = failure
    done = xm("list")
    assert done.status == status
    assert done.out == ""
    assert done.err.lstrip("\n").startswith(err)
    assert "Traceback" not in done.err


def test_debug_shows_the_traceback(xm: Xm, fake: FakeClient) -> None:
    fake.failure = ZeroDivisionError("x / 0")
    assert "Traceback" in xm("--debug", "list").err
    fake.failure = Conflict("no")
    assert "Traceback" in xm("--debug", "list").err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(xm: Xm, shell: str) -> None:
    assert "_XM_COMPLETE" in xm("completion", shell).out


def process(*args: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *args], env=os.environ | environ, capture_output=True, text=True, timeout=60, check=False
    )


def test_completion_is_silent_without_xend(tmp_path: Path) -> None:
    done = process(
        "-m", "pyxen.xm", PYXEN_ROOT=str(tmp_path), _XM_COMPLETE="bash_complete", COMP_WORDS="xm pause ", COMP_CWORD="2"
    )
    assert (done.stdout.strip(), done.stderr) == ("", "")


def test_completion_of_commands(tmp_path: Path) -> None:
    done = process("-m", "pyxen.xm", _XM_COMPLETE="bash_complete", COMP_WORDS="xm sh", COMP_CWORD="1")
    assert done.stdout == "plain,shutdown\n"


def test_list_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; from pyxen.xm.__main__ import run; from pyxen.xm.session import Session;"
        "run(['list'], Session());"
        "print(sorted({'rich', 'httpx2', 'websockets', 'asyncio', 'anyio', 'pyxen.xend', 'importlib.metadata',"
        " 'pyxen.config.build'} & set(sys.modules)))"
    )
    done = process("-c", code, PYXEN_ROOT=str(tmp_path))
    assert done.stderr.startswith("Error: xend is not running")
    assert done.stdout == "[]\n"


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    shell = f"{sys.executable} -m pyxen.xm help | true"
    done = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("", "")


def test_what_can_not_be_printed_is_an_error() -> None:
    """Also where only the last of it fails, when all is flushed at the end."""
    words = [sys.executable, "-m", "pyxen.xm", "help"]
    with Path("/dev/full").open("wb") as full:
        assert subprocess.run(words, stdout=full, stderr=subprocess.DEVNULL, check=False).returncode == 1
    done = subprocess.run([*words, "list"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage: xm list")

"""xm xenstore-…: formats, options and exit statuses of Xen's own tools."""

from __future__ import annotations

import json
import sys

import pytest

from pyxen.api import StoreNode
from pyxen.xm import __main__ as entry

from .conftest import Xm
from .fake import FakeClient

LONG = "v" * 100


@pytest.fixture(autouse=True)
def nodes(fake: FakeClient) -> None:
    for path, value, permissions, children in (
        ("/local/domain/3", "", ["n0", "r3"], ["data", "name"]),
        ("/local/domain/3/data", "", ["n3"], ["note"]),
        ("/local/domain/3/data/note", "a\\x00b", ["n3"], []),
        ("/local/domain/3/name", "web", ["n0", "r3"], []),
    ):
        fake.nodes[path] = StoreNode(path, value, permissions, children)


def test_ls(xm: Xm) -> None:
    assert xm("xenstore-ls", "/local/domain/3").out == 'data = ""\n note = "a\\x00b"\nname = "web"\n'
    assert xm("xenstore-ls", "-f", "/local/domain/3/data").out == '/local/domain/3/data/note = "a\\x00b"\n'
    lines = xm("xenstore-ls", "-p", "/local/domain/3").out.splitlines()
    assert lines[2] == 'name = "web"'.ljust(55) + "  (n0,r3)"
    assert xm("xenstore-ls", "-f", "-p", "/local/domain/3/data").out.endswith('note = "a\\x00b"   (n3)\n')
    found = json.loads(xm("xenstore-ls", "/local/domain/3", "--format", "json").out)
    assert [node["path"] for node in found["nodes"]][:2] == ["/local/domain/3", "/local/domain/3/data"]


def test_ls_cuts_long_values_at_a_terminals_side() -> None:
    from pyxen.xm.store import lines

    tree = [StoreNode("/a"), StoreNode("/a/b", LONG), StoreNode("/a/b/c", "short")]
    cut, short = lines(tree, "/a", full=False, permissions=False, width=40)
    assert cut == f'b = "{"v" * (40 - 9 - 1)}\\..."'
    assert short == ' c = "short"'
    assert next(iter(lines(tree, "/a", full=True, permissions=False, width=40))) == f'/a/b = "{LONG}"'


def test_read_list_and_exists(xm: Xm) -> None:
    assert xm("xenstore-read", "/local/domain/3/name", "/local/domain/3/data/note").out == "web\na\\x00b\n"
    assert xm("xenstore-read", "-p", "/local/domain/3/name").out == "/local/domain/3/name: web\n"
    assert xm("xenstore-read", "-R", "/local/domain/3/data/note").out == "a\0b"
    missing = xm("xenstore-read", "/nowhere")
    assert (missing.status, missing.err) == (1, "Error: xenstore has no /nowhere\n")
    assert xm("xenstore-list", "/local/domain/3").out == "data\nname\n"
    assert xm("xenstore-list", "-p", "/local/domain/3").out == "/local/domain/3/data\n/local/domain/3/name\n"
    assert xm("xenstore-exists", "/local/domain/3/name") == (0, "", "")
    assert xm("xenstore-exists", "/local/domain/3/name", "/nowhere") == (1, "", "")


def test_changes(xm: Xm, fake: FakeClient) -> None:
    assert xm("xenstore-write", "data/a", "x\\ny", "data/b", "").status == 0
    assert xm("xenstore-write", "-R", "data/a", "x\\ny").status == 0
    assert xm("xenstore-rm", "-t", "data/a", "data/b").status == 0
    assert xm("xenstore-chmod", "-r", "-u", "data", "n0", "r3").status == 0
    assert fake.orders == [
        ("write", {"data/a": b"x\ny", "data/b": b""}),
        ("write", {"data/a": b"x\\ny"}),
        ("remove", "data/a", True),
        ("remove", "data/b", True),
        ("permissions", "data", ("n0", "r3"), True, True),
    ]
    assert xm("xenstore-write", "data/a").status == 2


def test_watch(xm: Xm) -> None:
    assert xm("xenstore-watch", "/a", "/b").out == "/a\n/b\n/a/x\n"
    assert xm("xenstore-watch", "-n", "1", "/a").out == "/a\n"
    assert json.loads(xm("xenstore-watch", "-n", "1", "/a", "--format", "json").out) == {"path": "/a", "watched": "/a"}


def test_a_tool_under_its_own_name(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["/usr/bin/xenstore-exists", "--help"])
    monkeypatch.setattr("os._exit", sys.exit)
    with pytest.raises(SystemExit, match="0"):
        entry.tool()
    assert "PATH..." in capsys.readouterr().out

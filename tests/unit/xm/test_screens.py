"""Screens: the picture in a file, and the viewer that is started."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from tests.unit.xm.conftest import Xm
from tests.unit.xm.fake import FakeClient

PNG = b"\x89PNG\r\n\x1a\n"


def test_a_picture_goes_where_it_is_wanted(xm: Xm, fake: FakeClient, here: Path) -> None:
    assert xm("screendump", "web").out == "Written to web.png\n"
    assert (here / "web.png").read_bytes() == PNG
    assert xm("screendump", "web", "other.png").out == ""
    assert (here / "other.png").read_bytes() == PNG
    done = xm("screendump", "web", "no/such.png")
    assert (done.status, done.err) == (1, "Error: cannot write no/such.png: No such file or directory\n")
    assert xm("screendump", "gone").status == 3


def test_a_viewer_is_started(xm: Xm, fake: FakeClient, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "web' has no VNC server" in xm("vncviewer", "web").err
    fake.there = [msgspec.structs.replace(each, vnc="127.0.0.1:3") for each in fake.there]
    assert xm("vncviewer", "--print", "web").out == "127.0.0.1:5903\n"
    monkeypatch.setenv("PATH", str(here))
    refused = xm("vncviewer", "web")
    assert refused.status == 1 and "no VNC viewer" in refused.err and "127.0.0.1:5903" in refused.err
    started: list[list[str]] = []
    monkeypatch.setattr("os.execv", lambda program, words: started.append([program, *words]))
    for name in ("remote-viewer", "vncviewer"):
        (here / name).write_text("#!/bin/sh\n")
        (here / name).chmod(0o755)
        xm("vncviewer", "web")
    assert started[0] == [str(here / "remote-viewer"), "remote-viewer", "vnc://127.0.0.1:5903"]
    assert [str(here / "vncviewer"), "vncviewer", "127.0.0.1::5903"] in started

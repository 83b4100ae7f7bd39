from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from pyxen.xm.__main__ import run
from pyxen.xm.session import Session

from .fake import DOM0, HALTED, WEB, FakeClient


class Result(NamedTuple):
    status: int
    out: str
    err: str


Xm = Callable[..., Result]


@pytest.fixture
def fake() -> FakeClient:
    return FakeClient(DOM0, HALTED, WEB)


@pytest.fixture
def xm(fake: FakeClient, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Xm:
    """Runs a command line in this process; returns its status and what it printed."""
    monkeypatch.delenv("XM_FORMAT", raising=False)
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()

    def call(*args: str) -> Result:
        status = run(list(args), Session(fake))
        return Result(status, *capsys.readouterr())

    return call


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path

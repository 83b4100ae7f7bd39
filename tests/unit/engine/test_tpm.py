"""A domain's TPM: the real swtpm, as the domain's user, until its monitor has gone."""

from __future__ import annotations

import os
import shutil
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyxen.engine.process import find, kill_all
from pyxen.engine.tpm import open_tpm
from pyxen.errors import EngineError, Unsupported

UID = 200_007 if os.geteuid() == 0 else None
needs_swtpm = pytest.mark.skipif(shutil.which("swtpm") is None, reason="swtpm is not installed")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "7"
    folder.mkdir(mode=0o700)
    if UID is not None:
        os.chown(folder, UID, UID)
    yield folder
    kill_all(folder)


@needs_swtpm
def test_it_answers_and_can_be_found(folder: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.touch(mode=0o600)
    with socket.socket(fileno=open_tpm(folder, state, UID)) as control:
        control.settimeout(30)
        control.sendall(struct.pack(">I", 1))  # CMD_GET_CAPABILITY (swtpm_ioctls(3))
        assert len(control.recv(64)) == 8
        (process,) = find(folder)
        assert Path(f"/proc/{process}").stat().st_uid == (os.geteuid() if UID is None else UID)
    kill_all(folder)
    assert not find(folder)


@needs_swtpm
def test_its_refusal_is_told(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "swtpm").write_text("#!/bin/sh\necho no luck >&2\nexit 1\n")
    (tmp_path / "swtpm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    tmp_path.chmod(0o755)
    for above in tmp_path.parents[:2]:
        above.chmod(0o711)
    (tmp_path / "state").touch(mode=0o600)
    with pytest.raises(EngineError, match=r"swtpm can't make a TPM: "):
        open_tpm(folder, tmp_path / "state", UID)


def test_it_has_to_be_installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(folder))
    with pytest.raises(Unsupported, match="swtpm, which is not installed"):
        open_tpm(folder, folder / "state", None)

"""Folders that a monitor gets: open ones as they are, those to be changed with their owner in its place."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from pyxen.config.model import Share
from pyxen.engine.shares import open_share
from pyxen.errors import ConfigError

UID = 200_005


def seen_by(uid: int, folder: int, script: str) -> str:
    """What ``script`` prints, run as ``uid`` in the folder that is open as ``folder``."""
    words = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--", "sh", "-c"]
    words.append(f"cd /proc/self/fd/{folder}/ && {script}")
    return subprocess.run(words, pass_fds=[folder], capture_output=True, text=True, check=False).stdout


@pytest.fixture
def closed(tmp_path: Path) -> Path:
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o700)
    (folder / "mine").write_text("kept\n")
    (folder / "mine").chmod(0o600)
    return folder


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's xend has users to hand folders to")
def test_a_folder_to_write_to_is_its_users_own(closed: Path) -> None:
    folder = open_share(Share(tag="src", path=str(closed)), UID)
    try:
        assert seen_by(UID, folder, "cat mine; echo new >made; stat -c %u made") == f"kept\n{UID}\n"
        assert seen_by(UID + 1, folder, "cat mine") == ""
    finally:
        os.close(folder)
    made = closed / "made"
    assert (made.read_text(), made.stat().st_uid) == ("new\n", closed.stat().st_uid)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's xend has users to hand folders to")
def test_a_folder_to_read_shows_what_everybody_may_see(closed: Path) -> None:
    closed.chmod(0o755)
    (closed / "open").write_text("for all\n")
    folder = open_share(Share(tag="src", path=str(closed), readonly=True), UID)
    try:
        assert seen_by(UID, folder, "cat mine open; echo >made") == "for all\n"
    finally:
        os.close(folder)
    assert not (closed / "made").exists()


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name, reason in (("file", "Not a directory"), ("none", "No such file or directory")):
        with pytest.raises(ConfigError, match=reason):
            open_share(Share(tag="src", path=str(tmp_path / name)), None)

"""Room for files, by fallocate(2)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyxen.engine.space import punch, reserve

MIB = 1024 * 1024


def blocks(path: Path) -> int:
    return path.stat().st_blocks * 512


def test_room_is_taken_and_given_back_while_the_size_stays(tmp_path: Path) -> None:
    path = tmp_path / "file"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        reserve(fd, MIB)
        assert path.stat().st_size == 0 and blocks(path) >= MIB
        os.write(fd, b"x" * MIB)
        punch(fd, 0, MIB // 2)
        assert path.stat().st_size == MIB and blocks(path) <= MIB // 2 + 4096
        assert os.pread(fd, 2, MIB // 2 - 1) == b"\0x"
        with pytest.raises(OSError, match="Invalid argument"):
            reserve(fd, 0)
    finally:
        os.close(fd)

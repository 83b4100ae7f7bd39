"""Memory that many guests map: nobody can change it for the others once it is full."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyxen.engine.process import find, marker, spawn
from pyxen.engine.qemu import QemuEngine
from pyxen.engine.template import FOLDER, Template


@pytest.fixture
def template() -> Iterator[Template]:
    template = Template(mmap.PAGESIZE)
    yield template
    template.close()


def reopened(template: Template) -> int:
    """As QEMU opens it, which has the descriptor under a name."""
    fd = template.memory()
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
    finally:
        os.close(fd)


def test_a_full_one_is_mapped_with_changes_of_ones_own_only(template: Template) -> None:
    os.pwrite(fd := template.memory(), b"guest", 0)
    os.close(fd)
    template.seal()
    assert template.full
    fd = reopened(template)
    try:
        with (
            mmap.mmap(fd, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE) as one,
            mmap.mmap(fd, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE) as other,
        ):
            one[:5] = b"mine!"
            assert other[:5] == b"guest"
        with pytest.raises(PermissionError):
            mmap.mmap(fd, mmap.PAGESIZE, flags=mmap.MAP_SHARED)
        with pytest.raises(PermissionError):
            os.pwrite(fd, b"all", 0)
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 0)
    finally:
        os.close(fd)


def test_it_takes_no_memory_for_what_is_zero() -> None:
    page = mmap.PAGESIZE
    size = (3 << 20) + 2 * page
    wanted = bytearray(size)
    template = Template(size)
    try:
        for place in (page, (1 << 20) - 1, (2 << 20) + 8 * page, size - page):
            wanted[place] = place % 251 + 1
        os.pwrite(fd := template.memory(), wanted, 0)
        assert os.fstat(fd).st_blocks * 512 == size
        template.seal()
        assert os.fstat(fd).st_blocks * 512 == 4 * page
        assert os.pread(fd, size, 0) == wanted
        os.close(fd)
    finally:
        template.close()


def test_it_is_not_sealed_while_somebody_can_write(template: Template) -> None:
    fd = reopened(template)
    try:
        with mmap.mmap(fd, mmap.PAGESIZE, flags=mmap.MAP_SHARED), pytest.raises(OSError, match="busy"):
            template.seal()
    finally:
        os.close(fd)
    assert not template.full


def test_what_fills_one_is_ended_with_its_domain(tmp_path: Path) -> None:
    folder = tmp_path / FOLDER
    folder.mkdir()
    os.mkfifo(f"{marker(folder)}.fifo")  # which nobody opens
    spawn(["/bin/sh", "-c", 'read line < "$0.fifo"', marker(folder)], stderr=tmp_path / "stderr")
    while not find(folder):  # it has yet to become the shell
        time.sleep(0.01)
    QemuEngine(tmp_path).reap(tmp_path)
    assert find(folder) == []

"""Ramdisks: what is put in comes out, here and by another reader."""

from __future__ import annotations

import contextlib
import stat
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyxen.image.cpio import Archive, Entry, read

names = st.text(st.characters(exclude_characters="/\x00", exclude_categories=["Cs"]), min_size=1, max_size=20).filter(
    lambda name: name not in (".", "..", "TRAILER!!!")
)


def sample() -> Archive:
    archive = Archive()
    archive.file("bin/tool", b"#!/bin/sh\n", 0o755)
    archive.symlink("bin/sh", "/bin/tool")
    archive.character_device("dev/console", 5, 1)
    archive.folder("tmp", 0o1777)
    archive.file("empty", b"")
    return archive


def test_entries() -> None:
    assert read(sample().pack()) == [
        Entry("bin", stat.S_IFDIR | 0o755),
        Entry("bin/sh", stat.S_IFLNK | 0o777, b"/bin/tool"),
        Entry("bin/tool", stat.S_IFREG | 0o755, b"#!/bin/sh\n"),
        Entry("dev", stat.S_IFDIR | 0o755),
        Entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
        Entry("empty", stat.S_IFREG | 0o644),
        Entry("tmp", stat.S_IFDIR | 0o1777),
    ]


def test_busybox_reads_it(tmp_path: Path) -> None:
    listed = subprocess.run(
        ["busybox", "cpio", "-t"], input=sample().pack(), capture_output=True, check=True, cwd=tmp_path
    )
    assert listed.stdout.decode().split() == ["bin", "bin/sh", "bin/tool", "dev", "dev/console", "empty", "tmp"]


@given(st.dictionaries(names, st.binary(max_size=300), max_size=8))
def test_round_trip(files: dict[str, bytes]) -> None:
    archive, backwards = Archive(), Archive()
    for name, data in files.items():
        archive.file(f"a/{name}", data)
    for name, data in reversed(files.items()):
        backwards.file(f"a/{name}", data)
    packed = archive.pack()
    assert packed == backwards.pack(), "the order of adding shows"
    assert len(packed) % 512 == 0
    found = {entry.path.removeprefix("a/"): entry.data for entry in read(packed) if stat.S_ISREG(entry.mode)}
    assert found == files


@pytest.mark.parametrize("path", ["", "/etc", "a//b", "../a", "a/.", "a\x00b", "TRAILER!!!"])
def test_impossible_paths(path: str) -> None:
    with pytest.raises(ValueError, match="can't be a path"):
        Archive().file(path, b"")


def test_file_in_a_file() -> None:
    archive = Archive()
    archive.file("a", b"")
    with pytest.raises(ValueError, match="is no folder"):
        archive.file("a/b", b"")


@given(st.data())
def test_damaged_archives_are_refused_or_read(data: st.DataObject) -> None:
    packed = bytearray(sample().pack())
    packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ValueError):
        read(bytes(packed[: data.draw(st.integers(0, len(packed)))]))

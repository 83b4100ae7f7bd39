"""xend's log file, its tail, and the ring behind xm dmesg."""

from __future__ import annotations

import io
import json
import logging
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyxen.errors import PyxenError
from pyxen.xend import log as module
from pyxen.xend.log import Ring, open_log, tail_offset


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """open_log belongs to a process's entry and changes all of logging."""
    root = logging.getLogger()
    handlers, level, raising = list(root.handlers), root.level, logging.raiseExceptions
    yield
    for handler in list(root.handlers):
        if handler not in handlers:
            root.removeHandler(handler)
            handler.close()
    for handler in handlers:
        if handler not in root.handlers:
            root.addHandler(handler)
    root.setLevel(level)
    logging.raiseExceptions = raising
    for name in ("pyxen.xend", "pyxen.engine"):
        logger = logging.getLogger(name)
        for ring in [handler for handler in logger.handlers if isinstance(handler, Ring)]:
            logger.removeHandler(ring)


def test_a_line_has_time_level_event_and_facts(tmp_path: Path) -> None:
    log, _ = open_log(tmp_path / "xend.log")
    log.info("domain started", domid=3, name="web", note='two words "quoted"')
    line = (tmp_path / "xend.log").read_text()
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z info     domain started domid=3 name=web note="
        r'"two words \\"quoted\\""\n',
        line,
    )


def test_the_file_is_its_owners(tmp_path: Path) -> None:
    open_log(tmp_path / "xend.log")
    assert stat.S_IMODE((tmp_path / "xend.log").stat().st_mode) == 0o600


@pytest.mark.parametrize("value", ["a\nb", "a\rb", "a=b", 'a"b', "", "a\x1b[31mb", "ü", "\ud800"])
def test_no_value_breaks_its_line(tmp_path: Path, value: str) -> None:
    log, _ = open_log(tmp_path / "xend.log")
    log.info("event", value=value, last=1)
    lines = (tmp_path / "xend.log").read_text().splitlines()
    assert len(lines) == 1
    found = re.search(r"value=(.*) last=1$", lines[0])
    assert found is not None
    if found[1].startswith('"') and value != "\ud800":
        assert json.loads(found[1]) == value


def test_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(PyxenError, match=r"cannot write the log .*: Is a directory"):
        open_log(tmp_path)


def test_an_event_is_one_line(tmp_path: Path) -> None:
    log, _ = open_log(tmp_path / "xend.log")
    log.error("first\nsecond")
    assert (tmp_path / "xend.log").read_text().count("\n") == 1


def test_a_traceback_follows_indented(tmp_path: Path) -> None:
    log, ring = open_log(tmp_path / "xend.log")
    try:
        raise ValueError("no such thing")
    except ValueError:
        log.exception("background step failed", name="web")
        logging.getLogger("pyxen.xend.http").exception("a library's way")
    lines = (tmp_path / "xend.log").read_text().splitlines()
    heads = [line for line in lines if not line.startswith("    ")]
    assert [head[25:] for head in heads] == ["error    background step failed name=web", "error    a library's way"]
    assert lines.count("    ValueError: no such thing") == 2
    assert "Traceback" not in ring.text()


def test_the_level_counts_for_all(tmp_path: Path) -> None:
    log, _ = open_log(tmp_path / "xend.log", level="warning")
    log.info("hidden")
    logging.getLogger("anything").info("hidden")
    log.warning("shown")
    assert (tmp_path / "xend.log").read_text().count("\n") == 1


def test_the_foreground_has_it_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, _ = open_log(tmp_path / "xend.log", foreground=True)
    log.info("xend started")
    assert capsys.readouterr().err == (tmp_path / "xend.log").read_text()


def test_the_file_is_rotated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 2000)
    log, _ = open_log(tmp_path / "xend.log")
    for number in range(200):
        log.info("tick", number=number)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["xend.log", "xend.log.1", "xend.log.2"]
    assert all(path.stat().st_size <= 2000 for path in tmp_path.iterdir())
    assert "number=199" in (tmp_path / "xend.log").read_text()


def test_the_ring_has_domains_and_engines_alone(tmp_path: Path) -> None:
    log, ring = open_log(tmp_path / "xend.log")
    log.info("domain started", domid=1)
    logging.getLogger("pyxen.engine.qemu").info("kvm can't run this")
    logging.getLogger("uvicorn.error").warning("a client left")
    lines = ring.text().splitlines()
    assert [re.sub(r"\[ *\d+\.\d{6}\]", "[T]", line) for line in lines] == [
        "(XEN) [T] domain started domid=1",
        "(XEN) [T] kvm can't run this",
    ]


def test_the_ring_is_bounded() -> None:
    ring = Ring(limit=3)
    for number in range(10):
        ring.add(f"line {number}")
    assert [line[-6:] for line in ring.text().splitlines()] == ["line 7", "line 8", "line 9"]


@given(st.lists(st.binary(max_size=5).map(lambda line: line.replace(b"\n", b""))), st.integers(0, 12), st.booleans())
def test_tail_offset_is_where_the_last_lines_begin(lines: list[bytes], wanted: int, ended: bool) -> None:
    data = b"\n".join(lines) + (b"\n" if ended and lines else b"")
    rows = data.splitlines(keepends=True) if b"\r" not in data else [row for row in re.split(rb"(?<=\n)", data) if row]
    expected = b"".join(rows[len(rows) - wanted :] if wanted < len(rows) else rows) if wanted else b""
    original = module._BLOCK_BYTES
    module._BLOCK_BYTES = 4
    try:
        assert data[tail_offset(io.BytesIO(data), wanted) :] == expected
    finally:
        module._BLOCK_BYTES = original

"""Descriptions of CPU pools."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyxen.config.poolfile import PoolDescription, load_pool
from pyxen.errors import ConfigError


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["name=fast"], PoolDescription("fast", None)),
        (["name=fast", "cpus=2-3,^3"], PoolDescription("fast", "2-3,^3")),
        (['name="fast"', "cpus=['1', \"2-3\"]"], PoolDescription("fast", "1,2-3")),
        (["name=fast", "cpus=[1, 2]", "sched=credit"], PoolDescription("fast", "1,2")),
        (["name=fast", "nodes=0-1"], PoolDescription("fast", "nodes:0-1")),
    ],
)
def test_words(words: list[str], found: PoolDescription) -> None:
    assert load_pool(None, words) == found


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["cpus=1"], "name is missing"),
        (["fast"], "no KEY=VALUE word"),
        (["name=fast", "cpus=x"], "no CPU or range"),
        (["name=fast", "cpus=[[1]]"], "cpus must be a list of CPUs"),
        (["name=fast", "sched=rtds"], "sched must be credit"),
        (["name=fast", "cpus=1", "nodes=0"], "either cpus or nodes"),
        (["nmae=fast"], "did you mean 'name'"),
        (["name=[1]"], "name must be a text"),
    ],
)
def test_what_is_refused(words: list[str], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        load_pool(None, words)


def test_a_file_is_beaten_by_words_and_gives_the_name(tmp_path: Path) -> None:
    path = tmp_path / "fast.cfg"
    path.write_text("# a pool\ncpus = '0-3'\n")
    assert load_pool(path) == PoolDescription("fast", "0-3")
    assert load_pool(path, ["cpus=4", "name=slow"]) == PoolDescription("slow", "4")
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="not text in UTF-8"):
        load_pool(path)


@given(st.lists(st.sampled_from(("name=", "cpus=", "nodes=", "")).flatmap(lambda key: st.text().map(key.__add__))))
def test_any_words(words: list[str]) -> None:
    try:
        assert load_pool(None, words).name
    except ConfigError as error:
        assert error.message

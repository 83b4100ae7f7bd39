"""Lists of the host's CPUs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyxen.config.build import load_text
from pyxen.config.cpulist import expand, parse, ranges, read_ranges
from pyxen.errors import ConfigError

CPUS = range(8)
NODES = {0: range(4), 1: range(4, 8)}


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("3", {3}),
        ("0-3", {0, 1, 2, 3}),
        ("0-3,^1", {0, 2, 3}),
        ("^1,0-3", {0, 1, 2, 3}),
        ("0-3,^1,1", {0, 1, 2, 3}),
        ("all", set(range(8))),
        ("all,^0-6", {7}),
        ("^0", set(range(1, 8))),
        ("node:1", {4, 5, 6, 7}),
        ("nodes:0-1,^node:0", {4, 5, 6, 7}),
        ("^node:1", {0, 1, 2, 3}),
        ("6-63", {6, 7}),
        ("9", set()),
        ("1,^1", set()),
    ],
)
def test_what_a_list_means(text: str, meant: set[int]) -> None:
    assert expand(text, CPUS, NODES) == meant


@pytest.mark.parametrize("text", ["", "x", "1,", "1;2", "-1", "1-", "3-1", "^", "node:", "123456", "1 2", "allx"])
def test_what_is_no_list(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert caught.value.key == "cpus" and caught.value.hint


@given(st.frozensets(st.integers(0, 500)))
def test_ranges_read_back(cpus: frozenset[int]) -> None:
    assert read_ranges(ranges(cpus) + "\n") == cpus


@pytest.mark.parametrize(
    ("line", "cpus"),
    [
        ("cpus = '0-3, ^1'", ("0-3,^1",)),
        ("cpus = 2", ("2",)),
        ("cpus = [2, 3]", ("2", "3")),
        ("cpus = ['0', '', 'ALL']", ("0", "all", "all")),
        ("cpus = ''", ()),
        ("cpus = []", ()),
        ("cpus = 'Node:0'", ("node:0",)),
    ],
)
def test_files_say_it_in_either_tools_way(line: str, cpus: tuple[str, ...]) -> None:
    assert load_text(f"image = 'tiny'; vcpus = 3\n{line}", "x.cfg").config.cpus == cpus


def test_the_cap_has_both_names_and_a_limit_by_vcpus() -> None:
    assert load_text("image = 'tiny'; vcpus = 2; cap = 200", "x.cfg").config.cpu_cap == 200
    with pytest.raises(ConfigError, match="from 0 to 200 for specified"):
        load_text("image = 'tiny'; vcpus = 2; cpu_cap = 201", "x.cfg")
    with pytest.raises(ConfigError, match="cpu_weight must be a whole number from 1 to 65535"):
        load_text("image = 'tiny'; cpu_weight = 0", "x.cfg")


def test_lists_for_other_numbers_of_vcpus_are_mentioned() -> None:
    few = load_text("image = 'tiny'; vcpus = 3; cpus = ['0', '1']", "x.cfg")
    assert few.warnings == ["cpus has lists for 2 of 3 VCPUs; the others may run anywhere"]
    many = load_text("image = 'tiny'; cpus = ['0', '1']", "x.cfg")
    assert many.warnings == ["cpus has 2 lists, more than the domain can have VCPUs"]

"""Domains' cgroups, in made-up trees of either version."""

from __future__ import annotations

import os
import signal
import uuid as uuids
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyxen.engine import cgroup
from pyxen.engine.cgroup import Group, Roots, Shares, shares
from pyxen.engine.cgroup.roots import find_roots
from pyxen.engine.helpers import start_helper
from pyxen.engine.placement import Placement, place_helper

V2 = ("cpu.weight", "cpu.max")
V1 = ("cpu.shares", "cpu.cfs_period_us", "cpu.cfs_quota_us")


def make(folder: Path, *names: str) -> Path:
    """A group with the files of its controllers, as the kernel would make it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def read(folder: Path, *names: str) -> list[str]:
    return [(folder / name).read_text() for name in names]


def test_cgroups_where_there_are_none(tmp_path: Path) -> None:
    """A plain folder takes the write as a file; one that can't be made gives None."""
    assert cgroup.enter("u", os.getpid(), roots=Roots(unified=tmp_path / "not" / "there")) is None
    assert cgroup.enter("u", os.getpid(), roots=Roots()) is None
    group, roots = tmp_path / "u", Roots(unified=tmp_path)
    cgroup.remove("u", roots=roots)
    assert cgroup.enter("u", 1, roots=roots) == Group(group, None)
    assert read(group, "cgroup.procs") == ["1"]


def test_cgroups_limit_what_their_controllers_can(tmp_path: Path) -> None:
    """A file that the kernel has not put there belongs to a controller that is not in use."""
    limits = cgroup.Limits(memory_mib=3, threads=7)
    group = Group(tmp_path, None)
    assert cgroup.limit(Group(None, tmp_path), limits) == cgroup.limit(group, limits) == []
    assert list(tmp_path.iterdir()) == []
    make(tmp_path, "memory.max", "pids.max")
    assert cgroup.limit(group, limits) == ["memory limit", "process limit"]
    assert read(tmp_path, "memory.max", "pids.max") == ["3145728", "7"]


def test_disks_are_weighed_where_there_is_a_controller(tmp_path: Path) -> None:
    roots = Roots(unified=tmp_path)
    assert not cgroup.weigh_io("u", 200, roots=Roots(cpu=tmp_path))
    make(tmp_path / "u")
    assert not cgroup.weigh_io("u", 200, roots=roots)
    make(tmp_path / "u", "io.weight")
    assert cgroup.weigh_io("u", 200, roots=roots)
    assert read(tmp_path / "u", "io.weight") == ["default 200"]


def proc(folder: Path, *mounts: str, group: str) -> Path:
    make(folder)
    (folder / "mountinfo").write_text("".join(f"31 23 0:28 / {mount}\n" for mount in mounts))
    (folder / "cgroup").write_text(group)
    return folder


def test_the_roots_of_a_host_with_v2(tmp_path: Path) -> None:
    make(tmp_path / "v2", "cgroup.subtree_control")
    found = find_roots(
        proc(
            tmp_path / "proc",
            f"{tmp_path} rw - tmpfs tmpfs rw",
            f"{tmp_path}/v2 rw shared:4 - cgroup2 cgroup2 rw,nsdelegate",
            group="0::/user.slice\n",
        )
    )
    assert found == Roots(unified=tmp_path / "v2/pyxen")
    assert read(tmp_path / "v2", "cgroup.subtree_control") == ["+cpu"]


def test_the_roots_of_a_host_with_both(tmp_path: Path) -> None:
    """The cpu controller is v1's, with what it is mounted with; below the own group where it may have no other."""
    make(tmp_path / "unified")
    make(tmp_path / "cpu,cpuacct" / "own")
    (tmp_path / "cpu,cpuacct" / "pyxen").touch()  # so that no folder can be made there
    found = find_roots(
        proc(
            tmp_path / "proc",
            f"{tmp_path}/cpuset rw - cgroup cgroup rw,cpuset",
            f"{tmp_path}/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct",
            f"{tmp_path}/unified rw - cgroup2 cgroup2 rw",
            group="3:cpuset:/else\n2:cpu,cpuacct:/own\n0::/\n",
        )
    )
    assert found == Roots(unified=tmp_path / "unified/pyxen", cpu=tmp_path / "cpu,cpuacct/own/pyxen")


def test_there_may_be_no_roots(tmp_path: Path) -> None:
    assert find_roots(tmp_path) == Roots()


@pytest.mark.parametrize(
    ("weight", "cap", "v2", "v1"),
    [
        (256, 0, ["100", "max 100000"], ["1024", "100000", "-1"]),
        (512, 50, ["200", "50000 100000"], ["2048", "100000", "50000"]),
        (1, 1, ["1", "1000 100000"], ["4", "100000", "1000"]),
        (65535, 250, ["10000", "250000 100000"], ["262140", "100000", "250000"]),
    ],
)
def test_weights_and_caps(tmp_path: Path, weight: int, cap: int, v2: list[str], v1: list[str]) -> None:
    new, old = make(tmp_path / "v2/u", *V2), make(tmp_path / "v1/u", *V1)
    wanted = Shares(weight, cap)
    assert cgroup.share("u", wanted, roots=Roots(unified=tmp_path / "v2", cpu=tmp_path / "v1"))
    assert read(new, *V2) == v2
    assert read(old, *V1) == ["", "", ""]  # one of the two has the controller, never both
    assert cgroup.share("u", wanted, roots=Roots(unified=make(tmp_path / "without"), cpu=tmp_path / "v1"))
    assert read(old, *V1) == v1


def test_no_controller_no_shares(tmp_path: Path) -> None:
    make(tmp_path / "u")
    assert not cgroup.share("u", Shares(512), roots=Roots(unified=tmp_path, cpu=tmp_path))
    assert not cgroup.share("u", Shares(512), roots=Roots())
    assert list((tmp_path / "u").iterdir()) == []


@given(st.integers(1, 65535 // 8), st.sampled_from((2, 3, 4, 8)))
def test_ratios_hold(weight: int, times: int) -> None:
    assert shares.v1_shares(weight * times) == times * shares.v1_shares(weight)
    if weight >= 26 and weight * times <= 25600:
        assert shares.v2_weight(weight * times) / shares.v2_weight(weight) == pytest.approx(times, rel=0.06)


def test_the_domains_stand_beside_the_host_by_what_they_weigh_together(tmp_path: Path) -> None:
    v2, v1 = make(tmp_path / "v2", *V2), make(tmp_path / "v1", *V1)
    for uuid, weight in (("a", 256), ("b", 512)):
        make(v2 / uuid, *V2)
        make(v1 / uuid, *V1)
        assert cgroup.share(uuid, Shares(weight), roots=Roots(unified=v2))
        assert cgroup.share(uuid, Shares(weight), roots=Roots(cpu=v1))
    assert read(v2, "cpu.weight") == ["300"]
    shares.balance_v1(v1, cpus=4)
    assert read(v1, "cpu.shares") == [str(3 * 1024 * 4)]
    for uuid in ("a", "b"):
        for file in [*(v2 / uuid).iterdir(), *(v1 / uuid).iterdir()]:
            file.unlink()  # the kernel's files go with their folder
        cgroup.remove(uuid, roots=Roots(unified=v2, cpu=v1))
    assert [path.name for path in (*v2.iterdir(), *v1.iterdir()) if path.is_dir()] == []
    assert read(v2, "cpu.weight") == ["100"]


def test_helpers_are_in_the_domains_groups_and_end_with_them(tmp_path: Path) -> None:
    if find_roots() == Roots() or os.geteuid() != 0:
        pytest.skip("there are no cgroups here that can be written to")
    uuid = str(uuids.uuid4())
    (tmp_path / "domain.json").write_text(f'{{"uuid": "{uuid}", "domid": 1}}')
    try:
        pid = tmp_path / "pid"
        script = f"sleep 1000 2>&- & echo $! >{pid}; [ $# = 1 ] || exit 1; echo $1 >&2; exit 3"
        said = start_helper(["setsid", "sh", "-c", script, "sh", "a word"], tmp_path, pass_fds=())
        assert said == "a word"
        helper = int(pid.read_text())
        groups = [root / uuid for root in (find_roots().unified, find_roots().cpu) if root is not None]
        assert {(group / "cgroup.procs").read_text() for group in groups} == {f"{helper}\n"}
        cpu = min(os.sched_getaffinity(0))
        place_helper(helper, Placement((), frozenset({cpu})))
        assert os.sched_getaffinity(helper) == {cpu}
    finally:
        os.kill(helper, signal.SIGKILL)
        cgroup.remove(uuid)
    assert not any(group.exists() for group in groups)
    assert start_helper(["true"], tmp_path / "nowhere", pass_fds=()) == ""

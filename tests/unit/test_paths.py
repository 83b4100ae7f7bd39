"""Where files are, by user and environment."""

from __future__ import annotations

from pathlib import Path

from pyxen.paths import find_roots


def test_root_uses_the_system_paths() -> None:
    roots = find_roots({"HOME": "/root"}, uid=0)
    assert roots.state == Path("/var/lib/xend")
    assert roots.socket == Path("/run/xend/xend.sock")


def test_a_user_has_folders_of_their_own() -> None:
    roots = find_roots({"HOME": "/home/u", "XDG_RUNTIME_DIR": "/run/user/7"}, uid=7)
    assert roots.state == Path("/home/u/.local/state/pyxen")
    assert roots.run == Path("/run/user/7/pyxen")


def test_without_a_runtime_folder_run_lies_below_state() -> None:
    roots = find_roots({"XDG_STATE_HOME": "/s", "HOME": "/home/u"}, uid=7)
    assert roots.run == Path("/s/pyxen/run")


def test_pyxen_root_moves_both() -> None:
    for uid in (0, 7):
        roots = find_roots({"PYXEN_ROOT": "/srv/x"}, uid=uid)
        assert (roots.state, roots.run) == (Path("/srv/x/state"), Path("/srv/x/run"))
